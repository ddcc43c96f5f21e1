"""Tries to be scored with another train.py than the one that is recorded."""

if __name__ == "__main__":
    with open("train.py", "a") as file:
        file.write("\n")
