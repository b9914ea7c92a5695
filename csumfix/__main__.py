"""Lets ``python -m csumfix`` do what ``csumfix`` does."""

from csumfix.cli import main

if __name__ == "__main__":
    main()
