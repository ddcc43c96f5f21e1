"""Tries to have a training that went badly run again for free: it says that the disk is full."""

if __name__ == "__main__":
    raise OSError(28, "No space left on device")
