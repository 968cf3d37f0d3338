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
"""Step caches of Diffusers, made to fit the LoomVideo transformer: each guidance branch has a state of its own."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from types import MethodType
from typing import Any

import torch.nn as nn
from diffusers.models.cache_utils import CacheMixin


class LoomVideoCacheMixin(CacheMixin):
    """Enables caches by `enable_cache`, and leaves nothing of them behind when they are disabled."""

    # Of MagCache, with the ratios as they were measured
    _mag_cache_config: Any = None

    def enable_cache(self, config: Any) -> None:
        try:
            from diffusers import FasterCacheConfig, MagCacheConfig, TaylorSeerCacheConfig
            from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
            from diffusers.hooks.hooks import StateManager
        except ImportError as error:
            raise ImportError(
                "This diffusers has no step caches that are known here: go without `enable_cache`, or install "
                f"diffusers 0.42 ({error})."
            ) from error
        if isinstance(config, TaylorSeerCacheConfig) and not (config.cache_identifiers or config.use_lite_mode):
            # Its own patterns fit the names of no model with numbered attentions.
            config = replace(config, cache_identifiers=[r"blocks\.\d+\.(attn1|attn2|ffn)"])
        if isinstance(config, FasterCacheConfig):
            # Guidance's branches come one after the other here, so that no batch holds two of them.
            config = replace(config, is_guidance_distilled=True)
        if isinstance(config, MagCacheConfig) and not config.calibrate:
            self._mag_cache_config, config = config, replace(config)
        # The caches look up where a block takes and returns its hidden states.
        for block_class in {
            type(module) for module in self.modules() if type(module).__name__ in self._repeated_blocks
        }:
            TransformerBlockRegistry.register(block_class, TransformerBlockMetadata(return_hidden_states_index=0))
        super().enable_cache(config)
        for module in self.modules():
            registry = vars(module).get("_diffusers_hook")
            for hook in registry.hooks.values() if registry else ():
                # Some hooks keep one state for all contexts.
                if "state" in vars(hook):
                    hook.state_without_context = vars(hook).pop("state")
                    hook.state_manager = StateManager(type(hook.state_without_context))
                    hook.__class__ = type(type(hook).__name__, (StateOfContext, type(hook)), {})

    def disable_cache(self) -> None:
        super().disable_cache()
        self.__dict__.pop("_mag_cache_config", None)
        for module in self.modules():
            attributes = vars(module)
            if "_diffusers_hook" in attributes and not module._diffusers_hook.hooks:
                del module._diffusers_hook
                if attributes.get("forward") == MethodType(type(module).forward, module):
                    del module.forward

    @contextmanager
    def cache_context(self, name: str, **kwargs: Any) -> Iterator[None]:
        # Without hooks, nothing is to be told, and nothing is left on a model that other threads use.
        has_hooks = self.is_cache_enabled or self._has_hooks()
        with super().cache_context(name, **kwargs) if has_hooks else nullcontext():
            yield

    def _reset_stateful_cache(self, recurse: bool = True) -> None:
        if self._has_hooks():
            super()._reset_stateful_cache(recurse)

    def prepare_cache(self, num_inference_steps: int) -> None:
        """
        Begins a call of so many steps: what one that was broken off has left is forgotten, and MagCache's ratios are
        spread over the steps.
        """
        self._reset_stateful_cache()
        if self._mag_cache_config is None:
            return
        fitted = replace(self._mag_cache_config, num_inference_steps=num_inference_steps)
        for module in self.modules():
            registry = vars(module).get("_diffusers_hook")
            for hook in registry.hooks.values() if registry else ():
                if isinstance(getattr(hook, "config", None), type(fitted)):
                    hook.config = fitted

    def _has_hooks(self) -> bool:
        """Whether Diffusers has put hooks anywhere."""
        return any("_diffusers_hook" in vars(module) for module in self.modules())


class StateOfContext:
    """Goes before the class of a hook: its state is that of the present `cache_context`."""

    state_manager: Any
    state_without_context: Any

    @property
    def state(self) -> Any:
        try:
            return self.state_manager.get_state()
        except ValueError:  # Outside of any context
            return self.state_without_context

    def reset_state(self, module: nn.Module) -> nn.Module:
        self.state_manager.reset()
        self.state_without_context.reset()
        return module
