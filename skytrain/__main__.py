"""`python -m skytrain` is the command `skytrain`."""

from skytrain.cli import main

if __name__ == "__main__":
    main()
