"""Writes everything that is written from the code."""

from manual.pages import FILES, TABLES, write

if __name__ == "__main__":
    for each in (*FILES, *TABLES):
        write(each)
