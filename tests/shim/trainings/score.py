"""A scorer: argv[1] says how it behaves."""

import json
import sys
import time

if sys.argv[1] == "good":
    print("a word before")
    print(json.dumps({"value": 1.25, "attested": True}))
elif sys.argv[1] == "fail":
    sys.exit("no weights")
elif sys.argv[1] == "hang":
    time.sleep(60)
else:
    print("no object")
