"""Tries to print a score of its own, and to leave before there is another one."""

import os


def build():
    for fd in (1, 2):
        os.write(fd, b'{"val_bpb": 0.1, "tokens": 1, "peeking": 0.0}\n')
    os._exit(0)
