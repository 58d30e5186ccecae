"""``python -m sola_vision.train``."""

from sola_vision.train.command import main

if __name__ == "__main__":
    main()
