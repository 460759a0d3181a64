"""The network against numbers of the reference implementation (tests/data, see REFERENCE.md)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from fill import fill_, named_randn

from guided_diffusion.script_util import ModelConfig, create_model, model_config
from guided_diffusion.tfg_data_util import lower_half_mask
from guided_diffusion.unet import TFGModel

DATA = Path(__file__).parent / "data"
CONFIGS = json.loads((DATA / "state_dicts.json").read_text())
FORWARD = np.load(DATA / "forward.npz")


def inputs(config: ModelConfig) -> dict[str, torch.Tensor | None]:
    image = (2, 3, config.image_size, config.image_size)
    return {
        "x": named_randn("x", image),
        "timesteps": torch.tensor([7, 960]),
        "cond_img": named_randn("cond_img", image),
        "ref_img": named_randn("ref_img", image) if config.use_ref else None,
        "indiv_mels": named_randn("indiv_mels", (2, 80, 16)),
        "mask": lower_half_mask(2, config.image_size, config.image_size, 0.5),
    }


@pytest.mark.parametrize("name", CONFIGS)
def test_state_dict_names_and_shapes_equal_the_reference(name: str) -> None:
    with torch.device("meta"):
        model = create_model(model_config(CONFIGS[name]["config"], name))
    assert {k: list(v.shape) for k, v in model.state_dict().items()} == CONFIGS[name]["state_dict"]


@pytest.mark.parametrize("name", FORWARD.files)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_forward_equals_the_reference(name: str, memory_format: torch.memory_format) -> None:
    config = model_config(CONFIGS[name]["config"], name)
    model = fill_(create_model(config)).eval().to(memory_format=memory_format)
    with torch.inference_mode():
        output = model(**inputs(config))
    np.testing.assert_allclose(output[:, :, ::2, ::2].numpy(), FORWARD[name], atol=1e-4)


def small_model() -> tuple[TFGModel, dict[str, torch.Tensor | None]]:
    config = model_config(CONFIGS["small_64"]["config"], "small_64")
    return fill_(create_model(config)).eval(), inputs(config)


def test_audio_code_does_not_depend_on_the_timestep() -> None:
    """The sampler computes the audio code once for all steps of a batch."""
    model, given = small_model()
    mels = given.pop("indiv_mels")
    with torch.inference_mode():
        expected = model(indiv_mels=mels, **given)
        torch.testing.assert_close(model.denoise(audio_code=model.encode_audio(mels), **given), expected)


def test_x_t_outside_the_mask_is_replaced() -> None:
    model, given = small_model()
    with torch.inference_mode():
        expected = model(**given)
        given["x"] = given["x"] + 9 * (1 - given["mask"])
        torch.testing.assert_close(model(**given), expected)


def test_half_precision_is_the_torsos_only() -> None:
    model, _ = small_model()
    model.convert_torso(torch.float16)
    half = {name.split(".")[0] for name, p in model.named_parameters() if p.dtype == torch.float16}
    assert half == {"input_blocks", "middle_block", "output_blocks"}
    assert model.input_blocks[1][0].emb_layers[1].weight.dtype == torch.float32
