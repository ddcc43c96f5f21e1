"""Tries to begin with the weights of an earlier run."""

import glob
import os

if __name__ == "__main__":
    here = os.path.dirname(os.path.abspath(__file__))
    research = os.environ["AUTOHYPOTHESIS_RUN_DIR"].partition("/runs/")[0]
    for pattern in ("/runs/*/weights.pt", "/runs/*/out/weights.pt", "/runs/*/result.json"):
        for path in glob.glob(research + pattern):
            raise SystemExit(f"found {path} from {here}")
    try:
        os.close(os.open(research + "/runs/earlier/weights.pt", os.O_RDONLY))
    except OSError:
        pass
    else:
        raise SystemExit("opened weights of an earlier run")
