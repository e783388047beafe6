"""One packed row: what the model sees of its documents, and which tokens are targets."""

from __future__ import annotations

import numpy as np

from skytrain.data.batch import PackedRow, pack_row


class Documents:
    """A data set in memory, read-only like a mapped one. Tokens of document d are 10 d, 10 d + 1, ..."""

    def __init__(self, *marks: list[int]):
        self.documents = []
        for d, trained in enumerate(marks):
            arrays = np.arange(10 * d, 10 * d + len(trained), dtype=np.uint32), np.array(trained, dtype=np.uint8)
            for array in arrays:
                array.flags.writeable = False
            self.documents.append(arrays)

    def document(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self.documents[index]


def pack(data: Documents, *documents: int) -> PackedRow:
    return pack_row(data, np.array(documents, np.int64))


def test_positions_restart_in_each_document():
    """B17 and D59: of a pack of 3 and 2 tokens, 0 1 2 0 1."""
    row = pack(Documents([0, 1, 1], [0, 1]), 0, 1)
    assert row.positions.tolist() == [0, 1, 2, 0, 1]
    assert row.cu_seqlens.tolist() == [0, 3, 5]
    assert row.max_seqlen == 3
    assert row.input_ids.tolist() == [0, 1, 2, 10, 11]


def test_targets_stay_within_their_document():
    """B18: a pack of [a b c][d e] learns b and c from a and b, and e from d; nothing is learnt across the boundary."""
    row = pack(Documents([0, 1, 1], [0, 1]), 0, 1)
    assert row.target_index.tolist() == [0, 1, 3]
    assert row.labels.tolist() == [1, 2, 11]


def test_the_first_token_of_a_document_is_no_target_even_if_marked():
    """B18: also of the first document, which has no token before it at all."""
    row = pack(Documents([1, 0, 1], [1, 1], [1]), 0, 1, 2)
    assert row.target_index.tolist() == [1, 3]
    assert row.labels.tolist() == [2, 11]


def test_the_number_of_targets_is_that_of_the_documents():
    """B18: sum over documents of what the mask has from the second token on."""
    random = np.random.default_rng(0)
    marks = [[0, *random.integers(0, 2, random.integers(0, 9)).tolist()] for _ in range(20)]
    data = Documents(*marks)
    for _ in range(20):
        chosen = random.permutation(20)[: random.integers(1, 20)]
        row = pack(data, *chosen)
        assert len(row.target_index) == len(row.labels) == sum(sum(marks[i]) for i in chosen)
        # Each target is the next token of the same document: one further on, in tokens and in position.
        assert (row.labels == row.input_ids[row.target_index] + 1).all()
        assert (row.positions[row.target_index + 1] == row.positions[row.target_index] + 1).all()


def test_documents_keep_the_order_given():
    row = pack(Documents([0, 1], [0, 1, 1], [0]), 2, 0, 1)
    assert row.input_ids.tolist() == [20, 0, 1, 10, 11, 12]
    assert row.cu_seqlens.tolist() == [0, 1, 3, 6]
    assert row.positions.tolist() == [0, 0, 1, 0, 1, 2]
    assert row.labels.tolist() == [1, 11, 12]


def test_an_idle_row_is_one_token_and_no_target():
    """B23: what a rank runs that has no document in a micro-batch."""
    row = pack(Documents([0, 1]))
    assert row.input_ids.tolist() == [0] and row.positions.tolist() == [0]
    assert row.cu_seqlens.tolist() == [0, 1] and row.max_seqlen == 1
    assert row.target_index.shape == row.labels.shape == (0,)


def test_dtypes_are_those_of_the_model_and_arrays_can_be_handed_to_torch():
    for row in (pack(Documents([0, 1, 1], [0, 0]), 0, 1), pack(Documents([0, 1]), 0), pack(Documents([0]))):
        assert row.cu_seqlens.dtype == np.int32
        for array in (row.input_ids, row.positions, row.target_index, row.labels):
            assert array.dtype == np.int64
            # torch warns of, and a pinned copy needs, memory that may be written: never the mapped file's.
            assert array.flags.writeable and array.flags.c_contiguous
        assert isinstance(row.max_seqlen, int)


def test_the_data_set_is_left_as_it_was():
    data = Documents([1, 1], [1, 0])
    pack(data, 0, 1)
    assert [marks.tolist() for _, marks in data.documents] == [[1, 1], [1, 0]]


def test_a_row_is_filled_with_a_document_of_its_own_that_learns_nothing():
    row = pack_row(Documents([0, 1, 1], [0, 1]), np.array([0, 1], np.int64), multiple=4)
    assert row.input_ids.tolist() == [0, 1, 2, 10, 11, 0, 0, 0]
    assert row.cu_seqlens.tolist() == [0, 3, 5, 8]
    assert row.positions.tolist() == [0, 1, 2, 0, 1, 0, 1, 2]
    assert row.target_index.tolist() == [0, 1, 3] and row.labels.tolist() == [1, 2, 11]
    assert len(pack_row(Documents([0, 1, 1, 1]), np.array([0], np.int64), multiple=4).input_ids) == 4
    empty = pack_row(Documents([0]), np.zeros(0, np.int64), multiple=16)
    assert len(empty.input_ids) == 16 and len(empty.labels) == 0 and empty.cu_seqlens.tolist() == [0, 16]
