"""`python -m atlas_dist` is `atlas-dist`; on an image that lacks a package (`ray job submit --working-dir .`) it says which."""

import sys

from atlas_dist.packages import complaint, missing

if __name__ == "__main__":
    if lacking := missing():
        sys.stderr.write(f"ConfigError: {complaint(lacking, 'This Python')}\n")
        sys.exit(2)
    from atlas_dist.cli import main

    main()
