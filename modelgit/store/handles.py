"""Reading from open files."""

import os


def read_all(handle: int, start: int, into: memoryview) -> int:
    """Fill `into` from `start` of a file; return the bytes read, fewer only at the file's end."""
    done = 0
    while done < len(into):
        got = os.preadv(handle, [into[done:]], start + done)
        if not got:
            break
        done += got
    return done
