"""Attention between tokens by dot products."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import ArgumentError
from .factory import Layer
from .rotary import Rotation
from .windows import join_windows, pad_to_windows, split_windows


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    drop: nn.Dropout,
    fused: bool,
    bias: torch.Tensor | None = None,
    scale: float | None = None,
    windows: bool = False,
) -> torch.Tensor:
    """softmax(q k^T * scale + bias) v.

    Args:
        q, k, v: (..., L, C), (..., S, C) and (..., S, D).
        drop: dropout of the attention map. In the explicit form the map, (..., L, S), goes through
            this module, so that a hook on it reads (or replaces) it.
        fused: torch's fused kernel, which never holds the map, or the explicit form. Where torch
            has no such kernel, or a slow one, the explicit form does its work, unseen by hooks.
        bias: added to the products; must broadcast to (..., L, S).
        scale: 1 / sqrt(C) by default.
        windows: the sequences are windows of a map: short, and many.
    """
    rate = drop.p if drop.training else 0.0
    if fused and _has_kernel(q, bias, windows=windows):
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=rate, scale=scale)
        graph = torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None
        if graph or rate or not torch.is_grad_enabled() or not isinstance(y, torch.Tensor):
            return y
        if y.requires_grad:
            return _TwiceDifferentiable.apply(y, q, k, v, bias, scale)  # type: ignore[no-untyped-call]
        return y
    shares = _shares(q, k, bias, scale)
    return (F.dropout(shares, rate) if fused else drop(shares)) @ v


def _shares(
    q: torch.Tensor, k: torch.Tensor, bias: torch.Tensor | None, scale: float | None
) -> torch.Tensor:
    """The attention map, (..., L, S)."""
    products = (q * (q.shape[-1] ** -0.5 if scale is None else scale)) @ k.transpose(-2, -1)
    return (products if bias is None else products + bias).softmax(-1)


class _TwiceDifferentiable(torch.autograd.Function):
    """Pass on the output of torch's kernel, whose backward has no derivative of its own.

    Where that derivative may be wanted (``create_graph=True``), the gradients are those of the
    explicit form; otherwise the kernel's backward runs as if this were not there.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        y: torch.Tensor,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        bias: torch.Tensor | None,
        scale: float | None,
    ) -> torch.Tensor:
        return y.view_as(y)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        _, q, k, v, bias, ctx.scale = inputs
        ctx.save_for_backward(q, k, v, bias)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        if not torch.is_grad_enabled():
            return (grads[0], None, None, None, None, None)
        q, k, v, bias = ctx.saved_tensors
        wanted = [t for t in (q, k, v, bias) if t is not None and t.requires_grad]
        y = _shares(q, k, bias, ctx.scale) @ v
        results = iter(torch.autograd.grad(y, wanted, grads[0], create_graph=True))
        of = [next(results) if t is not None and t.requires_grad else None for t in (q, k, v, bias)]
        return (None, *of, None)


def _has_kernel(q: torch.Tensor, bias: torch.Tensor | None, *, windows: bool) -> bool:
    """True if torch's fused form is quicker than the explicit one.

    It is not in training on the CPU, where torch has no kernel that gives the bias a gradient (its
    own explicit form takes twice as long in bfloat16, where it counts in float32), and where the
    backward of the kernel it has takes up to six times as long for windows in bfloat16.
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return True
    if not isinstance(q, torch.Tensor) or q.device.type != "cpu":  # torch.fx has proxies
        return True
    if bias is not None and bias.requires_grad:
        return False
    return not (windows and q.requires_grad and q.dtype != torch.float32)


def split_heads(x: torch.Tensor, parts: int, num_heads: int) -> tuple[torch.Tensor, ...]:
    """(N, L, parts * heads * C) -> ``parts`` times (N, heads, L, C)."""
    n, length = x.shape[:2]
    width = x.shape[-1] // (parts * num_heads)  # no -1: a batch may be empty
    return x.reshape(n, length, parts, num_heads, width).permute(2, 0, 3, 1, 4).unbind(0)


def add_qv_bias(
    qkv: torch.Tensor, q_bias: torch.Tensor | None, v_bias: torch.Tensor | None
) -> torch.Tensor:
    """Add, in place, biases to the queries and values of (N, L, 3 * C); None adds nothing.

    The projection before it has no bias. It is called as any other layer, so that an adapter or a
    quantised layer can stand in its place.
    """
    if q_bias is None or v_bias is None:
        return qkv
    return qkv.add_(torch.cat((q_bias, torch.zeros_like(q_bias), v_bias)))


def join_heads(x: torch.Tensor) -> torch.Tensor:
    """(N, heads, L, C) -> (N, L, heads * C)."""
    n, heads, length, width = x.shape
    return x.transpose(1, 2).reshape(n, length, heads * width)


def head_width(dim: int, num_heads: int) -> int:
    """Width of one head.

    Raises:
        ArgumentError: the heads do not share ``dim`` evenly.
    """
    if num_heads < 1 or dim % num_heads:
        raise ArgumentError(f"num_heads={num_heads} does not divide the width, {dim}.")
    return dim // num_heads


class Attention(nn.Module):
    """Multi-head self-attention (https://arxiv.org/abs/1706.03762); (N, L, C) -> (N, L, C).

    ``fused_attn`` chooses the form of :func:`attend`; ``Backbone.set_fused_attn`` switches all.

    Args:
        dim, num_heads: the width, and the number of heads that share it.
        qkv_bias, proj_bias: of the projections in and out.
        qk_norm: norm ``f(channels)`` of queries and keys, within each head.
        scale_norm: norm of the heads' answers, before the projection out.
        head_dim: of one head, where it is not ``dim / num_heads``.
        attn_drop, proj_drop: dropout of the map, and of the output.
    """

    fused_attn = True

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        qkv_bias: bool = True,
        proj_bias: bool = True,
        qk_norm: Layer | None = None,
        scale_norm: Layer | None = None,
        head_dim: int | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        head_dim = head_dim or head_width(dim, num_heads)
        width = num_heads * head_dim
        self.num_heads = num_heads
        self.add_projections(dim, width, bias=qkv_bias)
        self.q_norm = qk_norm(head_dim) if qk_norm else nn.Identity()
        self.k_norm = qk_norm(head_dim) if qk_norm else nn.Identity()
        self.attn_drop = nn.Dropout(attn_drop)
        self.norm = scale_norm(width) if scale_norm else nn.Identity()
        self.proj = nn.Linear(width, dim, bias=proj_bias)
        self.proj_drop = nn.Dropout(proj_drop)

    def add_projections(self, dim: int, width: int, *, bias: bool) -> None:
        """Add what :meth:`project` uses, before the other modules."""
        self.qkv = nn.Linear(dim, 3 * width, bias=bias)

    def project(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(N, L, C) -> queries, keys and values (N, heads, L, C / heads)."""
        return split_heads(self.qkv(x), 3, self.num_heads)

    def forward(
        self, x: torch.Tensor, bias: torch.Tensor | None = None, *, turn: Rotation | None = None
    ) -> torch.Tensor:
        """(N, L, C) -> (N, L, C).

        Args:
            bias: as for :func:`attend`.
            turn: rotary embedding of queries and keys.
        """
        q, k, v = self.project(x)
        q, k = self.q_norm(q), self.k_norm(k)
        if turn is not None:
            q, k = turn.turn(q), turn.turn(k)
        x = join_heads(attend(q, k, v, drop=self.attn_drop, fused=self.fused_attn, bias=bias))
        return self.proj_drop(self.proj(self.norm(x)))


class LocalAttention(Attention):
    """Attention within windows of a map; (N, H, W, C) -> (N, H, W, C).

    A map that is no whole number of windows is filled up with zeros, which are attended to:
    networks without tables of positions were trained so.

    Args:
        window: side of a window, in positions.
        rest: arguments of :class:`Attention`.
    """

    def __init__(self, dim: int, num_heads: int, *, window: int, **rest: Any) -> None:
        super().__init__(dim, num_heads, **rest)
        self.window = (window, window)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        shape = x.shape[:3]
        x = split_windows(pad_to_windows(x, self.window), self.window).flatten(1, 2)
        x = super().forward(x)
        return join_windows(torch.unflatten(x, 1, self.window), shape)
