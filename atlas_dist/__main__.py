"""`python -m atlas_dist` is `atlas-dist`."""

from atlas_dist.cli import main

if __name__ == "__main__":
    main()
