"""A pipeline for checkpoints without text: class-conditional or unconditional, in pixels or in latents.

diffusers has none for a U-Net with a class embedder, or with ``num_class_embeds``.
"""

import inspect
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn

from edadm.errors import InputError
from edadm.systems.class_embedder import ClassEmbedder


class ClassPipeline(DiffusionPipeline):
    """Draws with a U-Net and any scheduler of diffusers, perhaps with a class embedder and an autoencoder."""

    _optional_components = ["class_embedder", "vae"]

    def __init__(
        self,
        unet: nn.Module,
        scheduler: Any,
        class_embedder: ClassEmbedder | None = None,
        vae: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler, class_embedder=class_embedder, vae=vae)
        embeds = self.unet.config.get("num_class_embeds")
        self.needs_class_labels = class_embedder is not None or embeds is not None
        self.classes = class_embedder.null if class_embedder is not None else embeds or 0

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        class_labels: list[int] | None = None,
        generator: list[torch.Generator] | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 1.0,
    ) -> ImagePipelineOutput:
        """Draw ``batch_size`` images, of the ``class_labels`` when the network takes some.

        ``guidance_scale`` above 1 is classifier-free guidance and needs a class embedder, whose last row is no class.
        """
        if self.needs_class_labels and class_labels is None:
            raise InputError(f"this model draws from class labels, 0 to {self.classes - 1}: give some")
        if class_labels is not None and not self.needs_class_labels:
            raise InputError("this model takes no class labels: give none")
        labels = torch.tensor(class_labels or [])
        if len(labels) and not (labels.min() >= 0 and labels.max() < self.classes):
            raise InputError(f"class label {labels.max()} is not in 0 to {self.classes - 1}")
        if guidance_scale != 1 and self.class_embedder is None:
            raise InputError("guidance_scale needs a model with a class embedder")
        conditions = self._conditions(labels, guidance_scale != 1)
        size = self.unet.config.sample_size
        shape = (self.unet.config.in_channels, *(size if isinstance(size, list | tuple) else (size, size)))
        x = randn_tensor((batch_size, *shape), generator=generator) * self.scheduler.init_noise_sigma
        self.scheduler.set_timesteps(num_inference_steps)
        # for schedulers that add noise
        noise = {"generator": generator} if "generator" in inspect.signature(self.scheduler.step).parameters else {}
        for t in self.progress_bar(self.scheduler.timesteps):
            scaled = self.scheduler.scale_model_input(x, t)
            if guidance_scale == 1:
                output = self.unet(scaled, t, *conditions, return_dict=False)[0]
            else:
                both = self.unet(torch.cat([scaled] * 2), t, *conditions, return_dict=False)[0]
                unconditional, conditional = both.chunk(2)
                output = unconditional + guidance_scale * (conditional - unconditional)
            x = self.scheduler.step(output, t, x, **noise).prev_sample
        return ImagePipelineOutput(images=self._images(x))

    def _conditions(self, labels: Tensor, guided: bool) -> tuple[Tensor, ...]:
        """What the U-Net takes after the step: nothing, labels (n,), or contexts (n or 2 n, 1, width)."""
        if self.class_embedder is None:
            return (labels,) if self.needs_class_labels else ()
        context = self.class_embedder(labels)
        if not guided:
            return (context,)
        return (torch.cat([self.class_embedder(torch.full_like(labels, self.class_embedder.null)), context]),)

    def _images(self, x: Tensor) -> list[Any]:
        if self.vae is not None:
            x = self.vae.decode(x / self.vae.config.scaling_factor).sample
        arrays = (x / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
        return self.numpy_to_pil(arrays)
