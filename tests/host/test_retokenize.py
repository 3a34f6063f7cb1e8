"""Responses as a reward model with a vocabulary of its own reads them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import make_rollout
from folders import TURNS, tokenizer_of
from jax.sharding import NamedSharding
from tokenizers.processors import TemplateProcessing

from rljax.data import NO_TOKEN, pad
from rljax.host.retokenize import make_retokenizer
from rljax.sharding import make_mesh
from rljax.tasks import character_tokenizer
from rljax.types import REWARD_CROPPED, REWARD_TOKENS, ROW

POLICY = character_tokenizer()
CHAT = [{"role": "user", "content": "a+b"}, {"role": "assistant", "content": "c"}]
PROMPTS = ["ab=", CHAT, "b="]


def reward_tokenizer(template=None):
    """Other ids than the policy's, and a BOS in front of plain text."""
    special = {"bos_token": "[BOS]", "eos_token": "[EOS]", "unk_token": "[UNK]"}
    tokenizer = tokenizer_of(
        *special.values(), characters="zyxwvutsrqponmlkjihgfedcba=+: \n", **special
    )
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="[BOS] $A", special_tokens=[("[BOS]", 0)]
    )
    tokenizer.chat_template = template
    return tokenizer


def rollout_of(responses, rows, **extras):
    """Responses of the policy, an EOS behind each, to prompts by their row of the data."""
    answers = [[*POLICY.encode(text, add_special_tokens=False), 2] for text in responses]
    rollout = make_rollout([len(ids) for ids in answers], prompt=3, budget=8)
    tokens = pad([[9, 9, 9, *ids] for ids in answers], 11, 0, left=False)
    extras = {ROW: jnp.array(rows, jnp.int32), **extras}
    return rollout.replace(tokens=jnp.asarray(tokens), extras=extras)


def read(retokenized, tokenizer):
    """The text of every row, its special tokens too."""
    rows = np.asarray(retokenized.extras[REWARD_TOKENS])
    kept = [row[row != NO_TOKEN] for row in rows]
    for row, ids in zip(rows, kept, strict=True):
        assert (row[len(ids) :] == NO_TOKEN).all()  # padded on the right
    return tokenizer.batch_decode(kept)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (None, ["[BOS]b=xy", "[BOS]ab=", "[BOS]a+b\ncz", "[BOS]b=x"]),
        (
            TURNS,
            [
                "user: b=\nassistant: xy\n",
                "user: ab=\nassistant: \n",
                "user: a+b\nassistant: c\nassistant: z\n",
                "user: b=\nassistant: x\n",
            ],
        ),
        ("{{ bos_token }}{{ messages[-1].content }}", ["[BOS]xy", "[BOS]", "[BOS]z", "[BOS]x"]),
    ],
    ids=["plain", "turns", "answers"],
)
def test_prompt_and_response_in_the_reward_models_own_words(template, expected):
    reward = reward_tokenizer(template)
    rollout = rollout_of(["xy", "", "z", "x"], [2, 0, 1, 2])
    retokenize = make_retokenizer(PROMPTS, POLICY, reward, max_tokens=50)
    out = retokenize(rollout)
    assert read(out, reward) == expected
    assert out.extras[REWARD_TOKENS].shape == (4, 50)
    assert out.extras[REWARD_TOKENS].dtype == jnp.int32
    assert out.extras[REWARD_CROPPED].tolist() == [False] * 4


def test_of_a_row_that_is_too_long_the_end_is_kept():
    reward = reward_tokenizer()
    retokenize = make_retokenizer(PROMPTS, POLICY, reward, max_tokens=5)
    out = retokenize(rollout_of(["xyz", "xy", "x"], [2, 2, 2]))
    assert read(out, reward) == ["b=xyz", "[BOS]b=xy", "[BOS]b=x"]
    assert out.extras[REWARD_CROPPED].tolist() == [True, False, False]


def test_the_rest_of_the_rollout_stays_as_it_is():
    rollout = rollout_of(["xy", "z"], [0, 2], answer=jnp.array([3, 4]))
    out = make_retokenizer(PROMPTS, POLICY, reward_tokenizer(), max_tokens=20)(rollout)
    for name in (REWARD_TOKENS, REWARD_CROPPED):
        del out.extras[name]
    jax.tree.map(np.testing.assert_array_equal, out, rollout)


def test_rows_stay_on_the_devices_that_hold_them():
    mesh = make_mesh(data=8)
    rollout = rollout_of(["x"] * 8, [0, 2] * 4)
    spread = NamedSharding(mesh, jax.P("data"))
    rollout = jax.tree.map(lambda x: jax.device_put(x, spread), rollout)
    out = make_retokenizer(PROMPTS, POLICY, reward_tokenizer(), max_tokens=20)(rollout)
    for name in (REWARD_TOKENS, REWARD_CROPPED):
        assert out.extras[name].sharding.is_equivalent_to(spread, out.extras[name].ndim)
    assert read(out, reward_tokenizer()) == ["[BOS]ab=x", "[BOS]b=x"] * 4
