"""Tries to change train.py, prepare.py, data and evaluator while it trains, and to put it back."""

import contextlib
import glob
import os

if __name__ == "__main__":
    data = os.environ["AUTOHYPOTHESIS_DATA"]
    root = os.path.dirname(os.path.abspath(__file__)) + "/../.."
    paths = ["train.py", "prepare.py", data + "/manifest.json", data + "/val.npy"]
    for path in paths + glob.glob(root + "/.git/autohypothesis/pristine/*/*"):
        with contextlib.suppress(OSError):
            with open(path, "r+b") as file:
                text = file.read()
                file.seek(0)
                file.write(b"#")
            with open(path, "wb") as file:
                file.write(text)
            assert path in ("train.py", "prepare.py"), f"wrote {path}"
