"""Relay: training on earlier episodes, chosen by a function of the user's own or a built-in one."""

from baton.relay.samples import EpisodeRelayBuffer, RelaySample

__all__ = ["EpisodeRelayBuffer", "RelaySample"]
