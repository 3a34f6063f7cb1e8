"""An exported policy in transformers itself; needs torch, which rljax does not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax.host.export import export_hf
from rljax.models import decoder, llama
from rljax.tasks import character_tokenizer

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("tied", [True, False])
def test_transformers_loads_the_export_and_agrees(tmp_path, tied):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = character_tokenizer()
    config = llama(
        vocab_size=len(tokenizer), layers=2, width=16, heads=4, kv_heads=2, tied=tied, rope_base=1e2
    )
    model = decoder(config)
    params = jax.tree.map(lambda x: 3 * x, model.init(jax.random.key(0)))
    folder = tmp_path / "policy"
    export_hf(folder, params, config, tokenizer, eos_ids=(tokenizer.eos_token_id,), max_tokens=64)
    theirs = AutoModelForCausalLM.from_pretrained(folder).eval()
    batch = AutoTokenizer.from_pretrained(folder)(
        ["12+3=", "4+"], padding=True, return_tensors="pt"
    )
    assert batch["attention_mask"].tolist()[1] == [0, 0, 0, 1, 1]
    with torch.no_grad():
        expected = theirs(**batch).logits.numpy()
    tokens = jnp.asarray(batch["input_ids"].numpy())
    mask = jnp.asarray(batch["attention_mask"].numpy() > 0)
    ours = np.asarray(model.head(params, model.apply(params, tokens, mask)))
    real = np.asarray(mask)
    scale = np.abs(expected[real]).max()
    np.testing.assert_allclose(ours[real], expected[real], atol=2e-5 * scale)
    assert theirs.generation_config.eos_token_id == tokenizer.eos_token_id
