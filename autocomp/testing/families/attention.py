"""Small transformers and what came after them: patches, windows, layer scale, token ids."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES = 10


class Attention(nn.Module):
    """Packed query, key and value projections as in timm; heads are counted in ``num_heads``."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = heads, width // heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, self.num_heads * self.head_dim)
        return self.proj(y)  # type: ignore[no-any-return]


class MLP(nn.Sequential):
    """Linear, GELU, linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__(nn.Linear(width, hidden), nn.GELU(), nn.Dropout(0.1), nn.Linear(hidden, width))


class EncoderBlock(nn.Module):
    """Norm first; own attention, or torch's ``nn.MultiheadAttention`` as torchvision's ViT has it."""

    def __init__(self, width: int, heads: int, hidden: int, packed: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.packed = packed
        self.attention: nn.Module = (
            nn.MultiheadAttention(width, heads, batch_first=True) if packed else Attention(width, heads)
        )
        self.mlp = MLP(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + (self.attention(y, y, y, need_weights=False)[0] if self.packed else self.attention(y))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class ViT(nn.Module):
    """Patch embedding, class token, position embedding (Dosovitskiy et al. 2021); input [n, 3, 32, 32]."""

    def __init__(self, packed: bool = False) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 8, 8)
        self.class_token = nn.Parameter(torch.zeros(1, 1, 32))
        self.positions = nn.Parameter(torch.zeros(1, 17, 32))
        self.blocks = nn.Sequential(*(EncoderBlock(32, 4, 64, packed) for _ in range(3)))
        self.norm = nn.LayerNorm(32)
        self.head = nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], dim=1) + self.positions
        return self.head(self.norm(self.blocks(x))[:, 0])  # type: ignore[no-any-return]


class WindowAttention(nn.Module):
    """Attention in shifted windows with a table of relative positions (Liu et al. 2021); [n, h, w, width]."""

    index: Tensor

    def __init__(self, width: int, heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.num_heads, self.window, self.shift = heads, window, shift
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        at = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
        apart = (at[:, :, None] - at[:, None, :]) + window - 1
        self.register_buffer("index", (apart[0] * (2 * window - 1) + apart[1]).flatten())

    def forward(self, x: Tensor) -> Tensor:
        n, h, w, c = x.shape
        size, count = self.window, (h // self.window) * (w // self.window)
        if self.shift:
            x = torch.roll(x, (-self.shift, -self.shift), (1, 2))
        x = x.view(n, h // size, size, w // size, size, c).permute(0, 1, 3, 2, 4, 5).reshape(n * count, size * size, c)
        qkv = self.qkv(x).reshape(n * count, size * size, 3, self.num_heads, c // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        scores = (q * (c // self.num_heads) ** -0.5) @ k.transpose(-2, -1)
        scores = scores + self.table[self.index].view(size**2, size**2, -1).permute(2, 0, 1).unsqueeze(0)
        x = self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(n * count, size * size, c))
        x = x.view(n, h // size, w // size, size, size, c).permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, c)
        return torch.roll(x, (self.shift, self.shift), (1, 2)) if self.shift else x


class SwinBlock(nn.Module):
    """Windowed attention and an MLP, norms first."""

    def __init__(self, width: int, heads: int, shift: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = WindowAttention(width, heads, 4, shift)
        self.mlp = MLP(width, 2 * width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class Swin(nn.Module):
    """Two stages with patch merging by strided slices between them; input [n, 3, 32, 32]."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.norm0 = nn.Conv2d(3, 24, 4, 4), nn.LayerNorm(24)
        self.stage1 = nn.Sequential(SwinBlock(24, 2, 0), SwinBlock(24, 2, 2))
        self.merge_norm, self.merge = nn.LayerNorm(96), nn.Linear(96, 48, bias=False)
        self.stage2 = nn.Sequential(SwinBlock(48, 4, 0), SwinBlock(48, 4, 0))
        self.norm = nn.LayerNorm(48)
        self.head = nn.Linear(48, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage1(self.norm0(self.patches(x).permute(0, 2, 3, 1)))
        parts = [x[:, a::2, b::2] for b in (0, 1) for a in (0, 1)]
        x = self.stage2(self.merge(self.merge_norm(torch.cat(parts, -1))))
        return self.head(self.norm(x).mean((1, 2)))  # type: ignore[no-any-return]


class ConvNeXtBlock(nn.Module):
    """Depthwise 7 x 7, LayerNorm over channels last, MLP, layer scale (Liu et al. 2022)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.expand, self.project = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.layer_scale = nn.Parameter(torch.ones(width, 1, 1) * 1e-1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.project(F.gelu(self.expand(y))).permute(0, 3, 1, 2)
        return x + self.layer_scale * y  # type: ignore[no-any-return]


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of [n, c, h, w]."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return y.permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    """Two stages with a normed, strided convolution between them; input [n, 3, 32, 32]."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Sequential(nn.Conv2d(3, 24, 4, 4), LayerNorm2d(24)),
            nn.Sequential(ConvNeXtBlock(24), ConvNeXtBlock(24)),
            nn.Sequential(LayerNorm2d(24), nn.Conv2d(24, 40, 2, 2)),
            nn.Sequential(ConvNeXtBlock(40)),
        )
        self.classifier = nn.Sequential(LayerNorm2d(40), nn.Flatten(1), nn.Linear(40, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(F.adaptive_avg_pool2d(self.features(x), 1))  # type: ignore[no-any-return]


class BertSelfAttention(nn.Module):
    """Separate query, key and value projections, as in BERT (Devlin et al. 2019)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_attention_heads, self.attention_head_size, self.all_head_size = heads, width // heads, width
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.dense, self.norm = nn.Linear(width, width), nn.LayerNorm(width)

    def _heads(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:-1], self.num_attention_heads, self.attention_head_size)
        return x.view(shape).permute(0, 2, 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self._heads(self.query(x)), self._heads(self.key(x)), self._heads(self.value(x))
        y = F.softmax(q @ k.transpose(-1, -2) / self.attention_head_size**0.5, dim=-1) @ v
        y = y.permute(0, 2, 1, 3).contiguous()
        return self.norm(x + self.dense(y.view(*y.shape[:-2], self.all_head_size)))  # type: ignore[no-any-return]


class BertLayer(nn.Module):
    """Attention and MLP, norms behind them."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = BertSelfAttention(width, heads)
        self.intermediate, self.output = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attention(x)
        return self.norm(x + self.output(F.gelu(self.intermediate(x))))  # type: ignore[no-any-return]


class Bert(nn.Module):
    """Token and position embeddings, encoder, pooler; input [n, 16] int64 below 200."""

    positions: Tensor

    def __init__(self, vocabulary: int = 200) -> None:
        super().__init__()
        self.word, self.place = nn.Embedding(vocabulary, 48, padding_idx=0), nn.Embedding(32, 48)
        self.register_buffer("positions", torch.arange(32)[None], persistent=False)
        self.norm = nn.LayerNorm(48)
        self.layers = nn.ModuleList(BertLayer(48, 4) for _ in range(2))
        self.pooler, self.classifier = nn.Linear(48, 48), nn.Linear(48, CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.norm(self.word(ids) + self.place(self.positions[:, : ids.shape[1]]))
        for layer in self.layers:
            x = layer(x)
        return self.classifier(torch.tanh(self.pooler(x[:, 0])))  # type: ignore[no-any-return]
