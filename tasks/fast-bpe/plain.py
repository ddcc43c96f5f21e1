# ruff: noqa
"""What bpe.py must do, in the plainest words: the oracle of the suite and the yardstick of time.

No search edits it. A candidate is right when it answers as this does, and its score is its time as
a share of this file's.
"""


def learn(text: bytes, merges: int) -> list[tuple[int, int]]:
    """The most frequent pair becomes a token, up to `merges` times; ties go to the lower pair."""
    words = split(text)
    learnt = []
    while len(learnt) < merges:
        counts = count_pairs(words)
        if not counts:
            break
        pair = most_frequent(counts)
        if counts[pair] < 2:
            break
        learnt = learnt + [pair]
        merged = []
        for word in words:
            merged = merged + [merge(word, pair, 255 + len(learnt))]
        words = merged
    return learnt


def encode(text: bytes, learnt: list[tuple[int, int]]) -> list[int]:
    """The tokens of `text`: every word after every merge, in the order they were learnt."""
    tokens = []
    for word in split(text):
        tokens = tokens + list(encode_word(word, tuple(learnt)))
    return tokens


def encode_word(word: tuple[int, ...], learnt: tuple[tuple[int, int], ...]) -> tuple[int, ...]:
    """One word after every merge."""
    for k in range(len(learnt)):
        word = merge(word, learnt[k], 256 + k)
    return word


def split(text: bytes) -> list[tuple[int, ...]]:
    """Words as tuples of bytes; a blank or a line end begins the next word."""
    words = []
    word = []
    for i in range(len(text)):
        if text[i] in [32, 10] and word:
            words = words + [tuple(word)]
            word = []
        word = word + [text[i]]
    if word:
        words = words + [tuple(word)]
    return words


def count_pairs(words: list[tuple[int, ...]]) -> dict[tuple[int, int], int]:
    """How often each pair of neighbours stands in `words`."""
    counts = {}
    for word in words:
        for i in range(len(word) - 1):
            pair = (word[i], word[i + 1])
            if pair in counts:
                counts[pair] = counts[pair] + 1
            else:
                counts[pair] = 1
    return counts


def most_frequent(counts: dict[tuple[int, int], int]) -> tuple[int, int]:
    """The pair that stands there most often; of equals the lowest."""
    ranked = sorted(counts, key=lambda pair: (-counts[pair], pair))
    return ranked[0]


def merge(word: tuple[int, ...], pair: tuple[int, int], token: int) -> tuple[int, ...]:
    """`word` with every `pair`, from the left, as one `token`."""
    merged = []
    i = 0
    while i < len(word):
        if i + 1 < len(word) and (word[i], word[i + 1]) == pair:
            merged = merged + [token]
            i = i + 2
        else:
            merged = merged + [word[i]]
            i = i + 1
    return tuple(merged)
