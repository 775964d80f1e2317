#!/usr/bin/env bash
# The first screen of a report as a picture, for the docs:
#   scripts/screenshot.sh demo-run/report-demo/index.html                              -> docs/images/report.png, 1400 x 900, light
#   scripts/screenshot.sh demo-run/report-demo/index.html dark.png 1400 900 dark       (windows are at least 500 wide)
# Needs Chromium (Debian: apt-get install chromium).
set -euo pipefail
page=${1:?usage: scripts/screenshot.sh PAGE [PICTURE [WIDTH [HEIGHT [light|dark]]]]}
picture=${2:-"$(dirname "$0")/../docs/images/report.png"}
width=${3:-1400} height=${4:-900} scheme=${5:-light}
[[ -f $page ]] || { echo "There is no page $page: make it with atlas-dist report." >&2; exit 2; }
case $scheme in
  light) preferred=1 ;;
  dark) preferred=0 ;;
  *) echo "The scheme is light or dark, not $scheme." >&2; exit 2 ;;
esac
mkdir -p "$(dirname "$picture")"
chromium --headless=new --no-sandbox --disable-gpu --hide-scrollbars --window-size="$width,$height" \
  --blink-settings=preferredColorScheme="$preferred" --screenshot="$(realpath "$picture")" "file://$(realpath "$page")" 2>/dev/null
[[ -s $picture ]] || { echo "Chromium made no picture." >&2; exit 2; }
echo "$picture"
