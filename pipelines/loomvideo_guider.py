# Copyright 2026 The LoomVideo for Diffusers authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Cascaded guidance as a guider, a component that modular pipelines can exchange."""

from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.guiders.guider_utils import BaseGuidance, GuiderOutput

from .loomvideo_guidance import guidance_coefficients, guided_steps, weigh


# The order in which `follow` names them
GUIDED_BRANCHES = ("cond", "uncond", "visual")


class LoomVideoGuidance(BaseGuidance):
    r"""
    The paper's cascaded guidance: `u + s_v (v - u) + s_t (c - v)` for the unconditional, visual and full branch.

    A branch whose coefficient is 0 is not run; without visual input there is no visual branch.

    Args:
        guidance_scale (`float`, defaults to 5.0):
            How much the words count, `s_t`.
        guidance_scale_visual (`float`, defaults to 1.5):
            How much the source and the references count, `s_v`. Guidance is off when neither scale is above 1.
        start, stop (`float`, defaults to 0.0 and 1.0):
            The part of the steps that is guided, as shares of them.
        enabled (`bool`, defaults to `True`):
            Whether there is guidance at all.
    """

    _input_predictions = ["pred_cond", "pred_uncond", "pred_visual"]

    @register_to_config
    def __init__(
        self,
        guidance_scale: float = 5.0,
        guidance_scale_visual: float = 1.5,
        start: float = 0.0,
        stop: float = 1.0,
        enabled: bool = True,
    ):
        super().__init__(start, stop, enabled)
        self.guidance_scale = guidance_scale
        self.guidance_scale_visual = guidance_scale_visual
        self._has_visual_input = True

    @property
    def coefficients(self) -> dict[str, float]:
        """What each branch that runs at this step is multiplied by."""
        steps = guided_steps(self._num_inference_steps or 1, (self._start, self._stop))
        if not self._enabled or (self._step or 0) not in steps:
            return {"cond": 1.0}
        return guidance_coefficients(self.guidance_scale, self.guidance_scale_visual, self._has_visual_input)

    @property
    def num_conditions(self) -> int:
        return len(self.coefficients)

    @property
    def is_conditional(self) -> bool:
        return list(self.coefficients)[self._count_prepared - 1] != "uncond"

    def prepare_inputs(self, data: dict[str, tuple]) -> list[Any]:
        """
        Divides inputs among the branches that run.

        Args:
            data: for each input its values for the branches, in the order of `GUIDED_BRANCHES`; two where there is no
                visual input.
        """
        self._has_visual_input = any(isinstance(values, tuple) and len(values) == 3 for values in data.values())
        return [
            self._prepare_batch(data, GUIDED_BRANCHES.index(branch), f"pred_{branch}") for branch in self.coefficients
        ]

    def forward(self, **predictions: torch.Tensor) -> GuiderOutput:
        """Returns the guided velocity of those of the branches, `pred_cond` and so on, and two of these."""
        velocity = weigh([predictions[f"pred_{branch}"] for branch in self.coefficients], self.coefficients.values())
        return GuiderOutput(
            pred=velocity, pred_cond=predictions["pred_cond"], pred_uncond=predictions.get("pred_uncond")
        )
