"""``python -m turnout``, for where the console script is not on the PATH."""

from turnout.entry import main

if __name__ == "__main__":
    main()
