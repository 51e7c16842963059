"""DLRM-DCNv2 in PyTorch: `benchmarks.peers.dlrm` has both."""

from __future__ import annotations

from benchmarks.peers import dlrm


class Peer(dlrm.Peer):
    pass
