"""Tries to plant code among the installed packages, which every later run would have."""

import sysconfig

if __name__ == "__main__":
    try:
        with open(sysconfig.get_path("purelib") + "/planted_by_a_cheat.py", "w") as file:
            file.write("planted = True")
    except OSError:
        pass
    else:
        raise SystemExit("it was planted")
