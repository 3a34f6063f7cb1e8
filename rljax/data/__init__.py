"""From the files that people have to batches of tokens."""

from rljax.data.arrays import NO_TOKEN, column, pad
from rljax.data.batches import Batches, bucketed_batches, make_batches
from rljax.data.chat import encode_answers, encode_conversations, encode_prompts
from rljax.data.files import read_rows
from rljax.data.layouts import arrange, offers
from rljax.data.packing import PackedTable, pack
from rljax.data.responses import Responses, find_responses
from rljax.data.rows import Rows
from rljax.data.sequences import FILLER, Sequence, SequenceTable
from rljax.data.tables import (
    Limits,
    PromptTable,
    demonstration_table,
    labelled_table,
    pair_table,
)

__all__ = [
    "FILLER",
    "NO_TOKEN",
    "Batches",
    "Limits",
    "PackedTable",
    "PromptTable",
    "Responses",
    "Rows",
    "Sequence",
    "SequenceTable",
    "arrange",
    "bucketed_batches",
    "column",
    "demonstration_table",
    "encode_answers",
    "encode_conversations",
    "encode_prompts",
    "find_responses",
    "labelled_table",
    "make_batches",
    "offers",
    "pack",
    "pad",
    "pair_table",
    "read_rows",
]
