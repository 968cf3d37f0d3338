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

from dataclasses import replace
from types import MethodType
from typing import Any

import torch.nn as nn
from diffusers import FasterCacheConfig, TaylorSeerCacheConfig
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.hooks.faster_cache import FasterCacheBlockHook
from diffusers.hooks.hooks import StateManager
from diffusers.hooks.pyramid_attention_broadcast import PyramidAttentionBroadcastHook


class StateOfContext:
    """Goes before a hook that keeps one state for all contexts: with it, each `cache_context` has its own."""

    @property
    def state(self) -> Any:
        try:
            return self.state_manager.get_state()
        except ValueError:
            return self.state_without_context

    def reset_state(self, module: nn.Module) -> nn.Module:
        self.state_manager.reset()
        self.state_without_context.reset()
        return module


class LoomVideoFasterCacheBlockHook(StateOfContext, FasterCacheBlockHook):
    pass


class LoomVideoPyramidAttentionBroadcastHook(StateOfContext, PyramidAttentionBroadcastHook):
    pass


HOOKS_OF_CONTEXTS = {
    FasterCacheBlockHook: LoomVideoFasterCacheBlockHook,
    PyramidAttentionBroadcastHook: LoomVideoPyramidAttentionBroadcastHook,
}


def prepare_cache(config: Any, block_class: type[nn.Module]) -> Any:
    """Tells Diffusers what the blocks return, and returns the config of a cache as these blocks need it."""
    TransformerBlockRegistry.register(block_class, TransformerBlockMetadata(return_hidden_states_index=0))
    if isinstance(config, TaylorSeerCacheConfig) and not (config.cache_identifiers or config.use_lite_mode):
        # Its own patterns fit the names of no model with numbered attentions.
        return replace(config, cache_identifiers=[r"blocks\.\d+\.(attn1|attn2|ffn)"])
    if isinstance(config, FasterCacheConfig):
        # Guidance's branches come one after the other here, so that no batch holds two of them.
        return replace(config, is_guidance_distilled=True)
    return config


def divide_states(model: nn.Module) -> None:
    """Gives hooks that keep one state for all contexts, which guidance's branches are, a state for each."""
    for module in model.modules():
        registry = vars(module).get("_diffusers_hook")
        for hook in registry.hooks.values() if registry else ():
            if type(hook) in HOOKS_OF_CONTEXTS:
                hook.state_without_context = vars(hook).pop("state")
                hook.state_manager = StateManager(type(hook.state_without_context))
                hook.__class__ = HOOKS_OF_CONTEXTS[type(hook)]


def remove_empty_registries(model: nn.Module) -> None:
    """Takes away what Diffusers leaves on modules whose hooks it has removed."""
    for module in model.modules():
        attributes = vars(module)
        if "_diffusers_hook" in attributes and not module._diffusers_hook.hooks:
            del module._diffusers_hook
            if attributes.get("forward") == MethodType(type(module).forward, module):
                del module.forward
