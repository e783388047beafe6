"""Finds copies of evaluation items in training prompts and responses.

An item is copied where, in a prompt,

- all of it stands, word for word (`terms`: typography does not matter); or
- runs of n words that it shares with the prompt cover half of it, where n = 13 as in GPT-3 (Brown et al. 2020,
  appendix C); words in runs that many items or many prompts have (instructions, set phrases) count on neither side; or
- C = |S(item) & S(window)| / |S(item)| >= 0.8, the containment of Broder (1997), where S are the pairs of neighbouring
  words, without those that many items have, and the window is twice as long as the item. Numbers are words.

In a response, only all of an item is a copy. A prompt that is an item but for its numbers is of the same template: it
is no copy, and is told. So is one that half-matches by the last two rules and lacks a number of the item.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from skytrain.prep.evaluation_items import INSIDE_PROMPT, INSIDE_RESPONSE, Item, different, hashed, read_items, windows
from skytrain.prep.texts import OPERATORS, digest, is_number, terms, words

FEW_ITEMS, FEW_ITEMS_SHARE = 3, 0.01
"""A run of n words in more items than these is a set phrase; a pair of words is one in more than both of these."""
FEW_PROMPTS, FEW_PROMPTS_SHARE = 5, 0.001
"""So is one in more different prompts than both of these: copies of one item are rarer."""
PHRASE_PROMPTS, PHRASE_SHARE = 20, 0.01
"""A short item that stands inside more different prompts than both of these is a phrase that everybody uses."""
NEARLY_ALL = 0.8
"""Where so much of an item but its numbers is there, and fewer of its own runs are, it is a template."""
NEAR_PAIRS = 9
"""In items of fewer different pairs of words, one word changes the question."""

_SENTENCE_END = re.compile(r"\n+|(?<=[.?!:])\s+|(?<=[。？！：])")


@dataclass(frozen=True)
class Match:
    item: Item
    measure: str

    def __str__(self) -> str:
        return f"{self.item.name}: {self.measure}"


class Lookup:
    """Many payloads for a 64-bit key."""

    def __init__(self, keys: np.ndarray):
        self._order = np.argsort(keys, kind="stable")
        self._keys = keys[self._order]

    def find(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(index of the query, index of the key) for all that are equal."""
        if not len(self._keys) or not len(queries):
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        left = np.searchsorted(self._keys, queries)
        hits = np.flatnonzero(self._keys[np.minimum(left, len(self._keys) - 1)] == queries)
        counts = np.searchsorted(self._keys, queries[hits], "right") - left[hits]
        firsts = np.repeat(left[hits] - np.cumsum(counts) + counts, counts)
        return np.repeat(hits, counts), self._order[firsts + np.arange(counts.sum())]


class Sequences:
    """Finds whole sequences inside longer ones. Each is looked up by its rarest run of at most n values."""

    def __init__(self, sequences: list[np.ndarray], n: int):
        self._sequences = sequences
        runs = [windows(values, min(n, len(values))) for values in sequences]
        rarity = Counter(key for run in runs for key in set(run.tolist()))
        self._at = [min(range(len(run)), key=lambda i: rarity[int(run[i])]) for run in runs]
        by_length: dict[int, list[int]] = defaultdict(list)
        for i, values in enumerate(sequences):
            by_length[min(n, len(values))].append(i)
        self._lookups = {
            length: (Lookup(np.array([runs[i][self._at[i]] for i in members], np.uint64)), members)
            for length, members in by_length.items()
        }

    def find(self, values: np.ndarray) -> Iterator[tuple[int, int]]:
        """(which sequence, where it starts)"""
        for length, (lookup, members) in self._lookups.items():
            for place, key in zip(*lookup.find(windows(values, length))):
                i = members[key]
                start, sequence = int(place) - self._at[i], self._sequences[i]
                if start >= 0 and np.array_equal(values[start : start + len(sequence)], sequence):
                    yield i, start


class EvaluationSets:
    """Usage: `count` every training prompt, `settle`, then `check` rows."""

    def __init__(self, paths: list[str | Path], *, ngram: int = 13, coverage: float = 0.5, similarity: float = 0.8):
        """similarity 0: near copies are not looked for. Raises `UserError` for files that hold no items."""
        self._n, self._coverage, self._similarity = ngram, coverage, similarity
        self.items = different(item for path in paths for item in read_items(path))
        grams = [windows(item.values, ngram) for item in self.items]
        self._keys, self._gram = np.unique(np.concatenate([np.zeros(0, np.uint64), *grams]), return_inverse=True)
        self._gram_item = np.repeat(np.arange(len(grams)), [len(gram) for gram in grams])
        self._gram_at = np.concatenate([np.zeros(0, np.int64), *(np.arange(len(gram)) for gram in grams)])
        self._grams = Lookup(self._keys[self._gram])
        self._distinct = Lookup(self._keys)
        self._in_prompts = np.zeros(len(self._keys), np.int64)
        self._seen: set[bytes] = set()
        self._prompts = 0
        self._inside_prompts: Counter[Item] = Counter()
        self._index_wholes()

    def _index_wholes(self) -> None:
        # A set may hold hundreds of items of one template: a prompt of it is looked up among them once.
        self._families: dict[bytes, dict[bytes, Item]] = defaultdict(dict)
        self._tiny: dict[bytes, dict[bytes, Item]] = defaultdict(dict)
        for item in self.items:
            families = self._families if item.inside(INSIDE_PROMPT) else self._tiny
            families[item.family][item.values.tobytes()] = item
        self._members = list(self._families.values())
        self._whole = Sequences([next(iter(members.values())).masked for members in self._members], self._n)
        self._spoken = [item for item in self.items if item.inside(INSIDE_RESPONSE) and len(item.words) >= 4]
        self._in_response = Sequences([hashed(item.words) for item in self._spoken], self._n)

    def count(self, text: str) -> None:
        """Takes note of which runs of words this training prompt has."""
        # Samples of one problem have one prompt: most are known before they are taken to pieces.
        raw = digest([text])
        if raw in self._seen:
            return
        said = terms(text)
        key = digest(said)
        known = key in self._seen
        self._seen |= {raw, key}
        if known:
            return
        self._prompts += 1
        values = hashed(said)
        self._in_prompts[np.unique(self._distinct.find(windows(values, self._n))[1])] += 1
        inside = {item for _, item in self._wholes(values, hashed(said, masked=True)) if item is not None}
        inside.update(self._sentences(text))
        self._inside_prompts.update(item for item in inside if len(item.terms) < len(said))

    def _wholes(self, values: np.ndarray, masked: np.ndarray) -> Iterator[tuple[Item, Item | None]]:
        """(one of the template, the item itself where its numbers stand there too) for templates in a text."""
        for i, start in self._whole.find(masked):
            members = self._members[i]
            one = next(iter(members.values()))
            yield one, members.get(values[start : start + len(one.terms)].tobytes())

    def settle(self) -> None:
        """Decides what is a set phrase, from the items and the prompts counted so far."""
        pairs = np.unique(np.stack([self._gram, self._gram_item]), axis=1)
        in_items = np.bincount(pairs[0], minlength=len(self._keys))
        common = (in_items > FEW_ITEMS) | ((in_items > 1) & (in_items > len(self.items) / 2))
        common |= self._in_prompts > max(FEW_PROMPTS, FEW_PROMPTS_SHARE * self._prompts)
        for entry in np.flatnonzero(common[self._gram]):
            at = self._gram_at[entry]
            self.items[self._gram_item[entry]].own[at : at + self._n] = False
        for item, count in self._inside_prompts.items():
            item.phrase = len(item.terms) < self._n and count > max(PHRASE_PROMPTS, PHRASE_SHARE * self._prompts)
        self._index_pairs()

    def _index_pairs(self) -> None:
        pairs = {item: _pairs(item) for item in self.items} if self._similarity else {}
        frequency = Counter(pair for own in pairs.values() for pair in own)
        limit = max(FEW_ITEMS, FEW_ITEMS_SHARE * len(self.items))
        telling = {item: frozenset(pair for pair in own if frequency[pair] <= limit) for item, own in pairs.items()}
        self._near = [item for item, own in telling.items() if len(own) >= NEAR_PAIRS]
        self._pairs = [telling[item] for item in self._near]
        keys, self._pair_item = [], []
        for i, pairs in enumerate(self._pairs):
            # A window that has a share t of the pairs has one of any (1 - t) of them and one more: the rarest will do.
            rarest = sorted(pairs, key=lambda pair: (frequency[pair], pair))
            rarest = rarest[: int((1 - self._similarity) * len(pairs) + 1e-9) + 1]
            keys += rarest
            self._pair_item += [i] * len(rarest)
        self._pair_lookup = Lookup(np.array(keys, np.uint64))

    def check(self, prompts: list[str], response: str) -> tuple[Match | None, Match | None]:
        """(a copy, else an item of the same template)"""
        template = None
        for text in prompts:
            copy, same = self._check_prompt(text)
            if copy is not None:
                return copy, None
            template = template or same
        said = hashed(words(response))
        for i, _ in self._in_response.find(said):
            if not self._spoken[i].phrase:
                return Match(self._spoken[i], "all of it stands in the response"), None
        return None, template

    def _check_prompt(self, text: str) -> tuple[Match | None, Match | None]:
        said = terms(text)
        values, masked = hashed(said), hashed(said, masked=True)
        templates: dict[bytes, Item] = {}
        for one, item in self._wholes(values, masked):
            if item is None:
                templates[one.family] = one
            elif not item.phrase or len(item.terms) == len(said):
                return Match(item, "all of it stands in the prompt"), None
        copy = self._tiny_copy(text, values, masked, templates)
        copy = copy or self._covered(said, values, masked, templates) or self._similar(said, values, templates)
        template = next((Match(item, "the same but for its numbers") for item in templates.values()), None)
        return copy, template

    def _tiny_copy(
        self, text: str, values: np.ndarray, masked: np.ndarray, templates: dict[bytes, Item]
    ) -> Match | None:
        """Items too short to be found amid words are found as a whole prompt, or as a sentence or line of it."""
        members = self._tiny.get(masked.tobytes(), {})
        if values.tobytes() in members:
            return Match(members[values.tobytes()], "it is the prompt")
        if members:
            templates[masked.tobytes()] = next(iter(members.values()))
        item = next((item for item in self._sentences(text) if not item.phrase), None)
        return item and Match(item, "it is a sentence of the prompt")

    def _sentences(self, text: str) -> Iterator[Item]:
        """The tiny items that are sentences or lines of a text."""
        for sentence in _SENTENCE_END.split(text) if self._tiny else ():
            said = terms(sentence)
            if len(said) < 4 and not (len(said) == 3 and any(is_number(t) or t in OPERATORS for t in said)):
                continue
            item = self._tiny.get(hashed(said, masked=True).tobytes(), {}).get(hashed(said).tobytes())
            if item is not None:
                yield item

    def _covered(
        self, said: list[str], values: np.ndarray, masked: np.ndarray, templates: dict[bytes, Item]
    ) -> Match | None:
        covered: dict[int, np.ndarray] = {}
        for entry in self._grams.find(windows(values, self._n))[1]:
            i, at = int(self._gram_item[entry]), self._gram_at[entry]
            if i not in covered:
                covered[i] = np.zeros(len(self.items[i].terms), bool)
            covered[i][at : at + self._n] = True
        for i, places in covered.items():
            item = self.items[i]
            own = int(item.own.sum())
            share = int((places & item.own).sum()) / max(1, own)
            # Few words of its own beside set phrases are like a short item: all of them are needed.
            if not own or item.family in templates or share < (self._coverage if own >= self._n else 1):
                continue
            if share < NEARLY_ALL and _missing(item, said) and _masked_share(item, masked) >= NEARLY_ALL:
                templates[item.family] = item
            else:
                return Match(item, f"runs of {self._n} words cover {share:.0%} of it")
        return None

    def _similar(self, said: list[str], values: np.ndarray, templates: dict[bytes, Item]) -> Match | None:
        pairs = windows(values, 2)
        candidates = {self._pair_item[key] for key in self._pair_lookup.find(pairs)[1]}
        different = set(pairs.tolist())
        for i in sorted(candidates):
            item, wanted = self._near[i], self._pairs[i]
            if item.family in templates or len(wanted & different) < self._similarity * len(wanted):
                continue
            share, start = _containment(pairs.tolist(), wanted, 2 * len(item.terms))
            if share < self._similarity:
                continue
            window = said[start : start + 2 * len(item.terms) + 1]
            if _missing(item, window):
                templates[item.family] = item
            else:
                return Match(item, f"containment of its telling word pairs {share:.2f}")
        return None


def _missing(item: Item, said: list[str]) -> bool:
    """Whether a number of the item's own is not said, or not as often."""
    numbers = Counter(term for term, own in zip(item.terms, item.own) if own and is_number(term))
    return bool(numbers - Counter(filter(is_number, said)))


def _masked_share(item: Item, masked: np.ndarray) -> float:
    """The share of the item's pairs of words, all numbers alike, that a text has."""
    wanted = set(windows(item.masked, 2).tolist())
    return len(wanted & set(windows(masked, 2).tolist())) / max(1, len(wanted))


def _pairs(item: Item) -> frozenset[int]:
    return frozenset(windows(item.values, 2)[item.own[1:] & item.own[:-1]].tolist())


def _containment(said: list[int], wanted: frozenset[int], width: int) -> tuple[float, int]:
    """(the largest share of `wanted` that stands in a window of the width, where that window starts)"""
    places = [i for i, pair in enumerate(said) if pair in wanted]
    if not wanted or not places:
        return 0.0, 0
    inside: Counter[int] = Counter()
    best, best_start, first = 0, 0, 0
    for place in places:
        inside[said[place]] += 1
        while places[first] <= place - width:
            inside[said[places[first]]] -= 1
            if not inside[said[places[first]]]:
                del inside[said[places[first]]]
            first += 1
        if len(inside) > best:
            best, best_start = len(inside), places[first]
    return best / len(wanted), best_start
