"""The shipped networks, plainly, with torch's batch norm wherever a norm stands; `models` puts the wanted one there.

Module names are torchvision's (conv1, bn1, layer1.0.conv1, fc), so that rules and reports read as users expect.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

__all__ = [
    "Task",
    "TokenTask",
    "lenet",
    "mlp",
    "residual_mlp",
    "resnet_bottleneck",
    "resnet_cifar",
    "resnet_imagenet",
    "vgg11",
]


@dataclass(frozen=True)
class Task:
    """What a network is for: images of `channels` x `side` x `side`, in `classes` classes."""

    channels: int
    side: int
    classes: int


@dataclass(frozen=True)
class TokenTask:
    """What a network for tokens is for: sources to targets (`pairs`) or what follows (`text`); how many, how long."""

    kind: str
    sources: int
    targets: int
    source_length: int
    target_length: int


def _conv(c_in: int, c_out: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """Return a convolution that keeps the size (but for the stride), without a bias: a norm follows it."""
    return nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False)


def _shortcut(c_in: int, c_out: int, stride: int) -> nn.Sequential | None:
    """Return the projection (He et al. 2016, option B) where the shapes differ, else None."""
    if stride == 1 and c_in == c_out:
        return None
    return nn.Sequential(_conv(c_in, c_out, 1, stride), nn.BatchNorm2d(c_out))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut (He et al. 2016, figure 5 left)."""

    expansion = 1

    def __init__(self, c_in: int, c: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(c_in, c, 3, stride), nn.BatchNorm2d(c)
        self.conv2, self.bn2 = _conv(c, c, 3), nn.BatchNorm2d(c)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(c_in, c, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return relu(shortcut(x) + bn2(conv2(relu(bn1(conv1(x))))))."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += shortcut
        return self.relu(out)  # type: ignore[no-any-return]


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride) and 1x1 convolutions beside a shortcut (He et al. 2016, figure 5 right)."""

    expansion = 4

    def __init__(self, c_in: int, c: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(c_in, c, 1), nn.BatchNorm2d(c)
        self.conv2, self.bn2 = _conv(c, c, 3, stride), nn.BatchNorm2d(c)
        self.conv3, self.bn3 = _conv(c, 4 * c, 1), nn.BatchNorm2d(4 * c)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(c_in, 4 * c, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return relu(shortcut(x) + the three convolutions of x)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += shortcut
        return self.relu(out)  # type: ignore[no-any-return]


class ResNet(nn.Module):
    """A residual network of `blocks` per stage; each stage after the first halves the side and doubles the width.

    The small stem is one 3x3 convolution; the ImageNet stem is 7x7 with stride 2, then a 3x3 max pool.
    """

    def __init__(
        self, task: Task, block: type[BasicBlock | Bottleneck], blocks: Sequence[int], *, width: int, stem: str
    ) -> None:
        super().__init__()
        is_small = stem == "small"
        self.conv1 = _conv(task.channels, width, 3) if is_small else _conv(task.channels, width, 7, 2)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool: nn.Module = nn.Identity() if is_small else nn.MaxPool2d(3, 2, 1)
        c_in = width
        self.stages: list[str] = []
        for stage, n in enumerate(blocks):
            c = width * 2**stage
            strides = [1 if stage == 0 else 2] + [1] * (n - 1)
            layers = []
            for stride in strides:
                layers.append(block(c_in, c, stride))
                c_in = c * block.expansion
            self.stages.append(f"layer{stage + 1}")
            self.add_module(self.stages[-1], nn.Sequential(*layers))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(c_in, task.classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for stage in self.stages:
            x = self.get_submodule(stage)(x)
        return self.fc(self.avgpool(x).flatten(1))  # type: ignore[no-any-return]


def resnet_imagenet(task: Task, *, width: int, stem: str) -> nn.Module:
    """Return ResNet-18 (He et al. 2016, table 1)."""
    return ResNet(task, BasicBlock, (2, 2, 2, 2), width=width, stem=stem)


def resnet_bottleneck(task: Task, *, width: int, stem: str) -> nn.Module:
    """Return ResNet-50 (He et al. 2016, table 1)."""
    return ResNet(task, Bottleneck, (3, 4, 6, 3), width=width, stem=stem)


def resnet_cifar(task: Task, *, width: int, stem: str, depth: int) -> nn.Module:
    """Return the residual network of depth 6 n + 2 for small images (He et al. 2016, section 4.2)."""
    n, rest = divmod(depth - 2, 6)
    assert rest == 0, "the depth is 6 n + 2"
    return ResNet(task, BasicBlock, (n, n, n), width=width, stem=stem)


# Simonyan and Zisserman 2015, table 1, column A: multiples of the width, 0 a pool.
VGG11 = (1, 0, 2, 0, 4, 4, 0, 8, 8, 0, 8, 8, 0)


def vgg11(task: Task, *, width: int) -> nn.Module:
    """Return VGG-11 for small images: a norm after each convolution, one linear layer at the end.

    Pools round up, so that sides below 32 pass through all five.
    """
    layers: list[nn.Module] = []
    c = task.channels
    for multiple in VGG11:
        if multiple == 0:
            layers.append(nn.MaxPool2d(2, 2, ceil_mode=True))
            continue
        layers += [_conv(c, multiple * width, 3), nn.BatchNorm2d(multiple * width), nn.ReLU(inplace=True)]
        c = multiple * width
    parts = [("features", nn.Sequential(*layers)), ("avgpool", nn.AdaptiveAvgPool2d(1)), ("flatten", nn.Flatten())]
    return nn.Sequential(OrderedDict([*parts, ("classifier", nn.Linear(c, task.classes))]))


def mlp(task: Task, *, width: int) -> nn.Module:
    """Return two hidden layers of `width` units with norms, and a linear one (Gupta et al. 2015, section 3.1)."""
    pixels = task.channels * task.side**2
    return nn.Sequential(
        OrderedDict(
            [
                ("flatten", nn.Flatten()),
                ("fc1", nn.Linear(pixels, width, bias=False)),
                ("bn1", nn.BatchNorm1d(width)),
                ("relu1", nn.ReLU(inplace=True)),
                ("fc2", nn.Linear(width, width, bias=False)),
                ("bn2", nn.BatchNorm1d(width)),
                ("relu2", nn.ReLU(inplace=True)),
                ("fc3", nn.Linear(width, task.classes)),
            ]
        )
    )


class ResidualLayer(nn.Module):
    """A layer norm and two linear layers beside the identity, as between the attentions of a transformer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return x + fc2(gelu(fc1(norm(x))))."""
        return x + self.fc2(nn.functional.gelu(self.fc1(self.norm(x))))  # type: ignore[no-any-return]


def residual_mlp(task: Task, *, width: int) -> nn.Module:
    """Return four residual layers with layer norms before them and one after (Xiong et al. 2020, figure 1b)."""
    blocks = [(f"block{i + 1}", ResidualLayer(width)) for i in range(4)]
    ends = [("norm", nn.LayerNorm(width)), ("head", nn.Linear(width, task.classes))]
    stem = [("flatten", nn.Flatten()), ("stem", nn.Linear(task.channels * task.side**2, width))]
    return nn.Sequential(OrderedDict[str, nn.Module]([*stem, *blocks, *ends]))


def lenet(task: Task, *, width: int) -> nn.Module:
    """Return two 5x5 convolutions with pools, a hidden and a linear layer (Gupta et al. 2015, section 3.1)."""
    pooled = (task.side + 3) // 4  # two pools that round up
    return nn.Sequential(
        OrderedDict(
            [
                ("conv1", _conv(task.channels, width, 5)),
                ("bn1", nn.BatchNorm2d(width)),
                ("relu1", nn.ReLU(inplace=True)),
                ("pool1", nn.MaxPool2d(2, ceil_mode=True)),
                ("conv2", _conv(width, 2 * width, 5)),
                ("bn2", nn.BatchNorm2d(2 * width)),
                ("relu2", nn.ReLU(inplace=True)),
                ("pool2", nn.MaxPool2d(2, ceil_mode=True)),
                ("flatten", nn.Flatten()),
                ("fc1", nn.Linear(2 * width * pooled**2, 16 * width, bias=False)),
                ("bn3", nn.BatchNorm1d(16 * width)),
                ("relu3", nn.ReLU(inplace=True)),
                ("fc2", nn.Linear(16 * width, task.classes)),
            ]
        )
    )
