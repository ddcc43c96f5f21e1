"""Tries to read the text that it is judged by, in training, while it is tried and while scored."""

import glob
import os

for path in glob.glob(os.environ["AUTOHYPOTHESIS_DATA"] + "/val*"):
    try:
        with open(path, "rb") as file:
            stolen = any(file.read(4096))
    except PermissionError:
        stolen = False
    assert not stolen, f"read {path}"
