"""The inputs of a U-Net: by name, in order, in the form in which pipelines give them."""

import pytest
import tiny
import tiny_pipelines
import torch

from edadm.errors import InputError
from edadm.quantization import network

PLAIN = {"_class_name": "UNet2DModel"}
TEXT = {"_class_name": "UNet2DConditionModel"}
XL = TEXT | {"addition_embed_type": "text_time"}


def test_arguments_of_each_kind() -> None:
    assert network.arguments(PLAIN) == ("x", "t")
    assert network.arguments(PLAIN | {"num_class_embeds": 10}) == ("x", "t", "label")
    assert network.arguments(TEXT) == ("x", "t", "context")
    assert network.arguments(XL) == ("x", "t", "context", "text_embeds", "time_ids")


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (PLAIN | {"class_embed_type": "timestep"}, "class_embed_type"),
        (TEXT | {"num_class_embeds": 4}, "num_class_embeds"),
        (TEXT | {"addition_embed_type": "image"}, "addition_embed_type"),
        (TEXT | {"encoder_hid_dim_type": "ip_image_proj"}, "encoder_hid_dim_type"),
        (TEXT | {"time_cond_proj_dim": 256}, "time_cond_proj_dim"),
        ({"_class_name": "SD3Transformer2DModel"}, "SD3Transformer2DModel"),
    ],
)
def test_networks_with_other_inputs_are_refused(config: dict, named: str) -> None:
    with pytest.raises(InputError, match=named):
        network.arguments(config)


@pytest.mark.parametrize(
    ("timestep", "dtype"),
    [
        (7, torch.int64),
        (torch.tensor(7), torch.int64),
        (torch.tensor([7]), torch.int64),
        (torch.tensor([7, 7, 7]), torch.int64),
        (7.0, torch.int64),
        (torch.tensor(7.25), torch.float32),
    ],
)
def test_steps_in_every_form(timestep: object, dtype: torch.dtype) -> None:
    found = network.bind(PLAIN, torch.zeros(3, 1, 4, 4), timestep)["t"]
    assert found.dtype == dtype and found.shape == (3,)
    assert (found == (7.25 if dtype == torch.float32 else 7)).all()


def test_a_call_is_bound_by_name() -> None:
    x, context = torch.zeros(2, 4, 8, 8), torch.zeros(2, 3, 5)
    added = {"text_embeds": torch.ones(2, 6), "time_ids": torch.ones(2, 6)}
    settings = {"cross_attention_kwargs": None, "timestep_cond": None}
    found = network.bind(XL, x.half(), 1, encoder_hidden_states=context, added_cond_kwargs=added, **settings)
    assert tuple(found) == ("x", "t", "context", "text_embeds", "time_ids")
    assert all(value.dtype == torch.float32 for name, value in found.items() if name != "t")
    assert tuple(network.bind(TEXT, x, 1, context, cross_attention_kwargs={})) == ("x", "t", "context")
    label = torch.tensor([1, 2])
    for given in ((label,), (None, label)):  # diffusers' third positional argument, or by name
        assert torch.equal(network.bind(PLAIN | {"num_class_embeds": 3}, x, 1, *given)["label"], label)
    with pytest.raises(InputError, match="without context"):
        network.bind(TEXT, x, 1)
    with pytest.raises(InputError, match="without text_embeds"):
        network.bind(XL, x, 1, context)
    for name in ("mid_block_additional_residual", "encoder_attention_mask", "timestep_cond"):
        with pytest.raises(InputError, match=name):
            network.bind(TEXT, x, 1, context, **{name: x})
    with pytest.raises(InputError, match="class_labels|label"):
        network.bind(PLAIN, x, 1, None, label)


def test_shapes_that_a_configuration_does_not_say() -> None:
    sizes = {"in_channels": 4, "sample_size": 8}
    assert network.shapes(TEXT | sizes | {"cross_attention_dim": [12, 12]})["context"] == [-1, -1, 12]
    with pytest.raises(InputError, match="several widths"):
        network.shapes(TEXT | sizes | {"cross_attention_dim": [12, 24]})
    with pytest.raises(InputError, match="sample_size is null"):
        network.shapes(PLAIN | {"in_channels": 4, "sample_size": None})


def test_shapes_leave_room_for_the_text() -> None:
    unet = tiny_pipelines.text_unet(
        addition_embed_type="text_time", addition_time_embed_dim=4, projection_class_embeddings_input_dim=40
    )
    config = dict(unet.config) | XL
    shapes = network.shapes(config, (16, 12))
    assert shapes["x"] == [-1, 4, 16, 12] and shapes["context"] == [-1, -1, tiny_pipelines.WIDTH]
    assert shapes["text_embeds"] == [-1, 16] and shapes["time_ids"] == [-1, 6]
    inputs = (*tiny.inputs(2, channels=4), torch.randn(2, 3, 16), torch.randn(2, 16), torch.randn(2, 6))
    added = {"text_embeds": inputs[3], "time_ids": inputs[4]}
    assert torch.equal(network.forward(unet, inputs).sample, unet(*inputs[:3], added_cond_kwargs=added).sample)
