"""Tries to have a bad score taken for a failure of the machine, which is run again for free."""


def build():
    raise OSError(28, "No space left on device")
