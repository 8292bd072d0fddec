"""Networks as people write them, each with ``features``: what goes into its output layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations

WIDTH, CLASSES = 16, 10


class Network(nn.Module):
    """Small images to (B, 16), before the output layers that a network makes in ``__init__``."""

    preprocess: ClassVar = {"resize": 32, "crop": 32}

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.make()
        self.trunk = nn.Sequential(
            nn.Conv2d(3, WIDTH, 3, stride=4), nn.BatchNorm2d(WIDTH), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )

    def make(self) -> None:
        self.fc = nn.Linear(WIDTH, CLASSES)

    def features(self, images_BCHW):
        return self.trunk(images_BCHW)

    def forward(self, images_BCHW):
        return self.head(self.trunk(images_BCHW))

    def head(self, features_BD):
        return self.fc(features_BD)


def parameter(*shape):
    return nn.Parameter(torch.randn(*shape))


class Plain(Network):
    pass


class Sigmoid(Network):
    def head(self, features_BD):
        return torch.sigmoid(self.fc(features_BD))


class Squeezed(Network):
    def make(self):
        self.fc = nn.Linear(WIDTH, 1)

    def head(self, features_BD):
        return torch.tanh(self.fc(features_BD)).squeeze(-1)


class PositiveNumber(Squeezed):
    def head(self, features_BD):
        return functional.relu(self.fc(features_BD))[:, 0] * 100


class WritesIntoLogits(Network):
    def head(self, features_BD):
        return self.fc(features_BD).sub_(1).sigmoid_()


class WritesIntoItsInput(Network):
    def features(self, images_BCHW):
        return self.trunk(images_BCHW * 2 - 1)

    def forward(self, images_BCHW):
        images_BCHW.mul_(2).sub_(1)
        return self.fc(self.trunk(images_BCHW))


class Temperature(Network):
    def make(self):
        super().make()
        self.temperature = parameter(1)

    def head(self, features_BD):
        return (self.fc(features_BD) / self.temperature.exp().clamp(max=100)).log_softmax(1)


class LogitsAndFeatures(Network):
    def head(self, features_BD):
        return self.fc(features_BD), features_BD


class FeaturesAndLogits(Network):
    def head(self, features_BD):
        return features_BD, self.fc(features_BD)


class Mapping(Network):
    def head(self, features_BD):
        return {"logits": self.fc(features_BD), "features": features_BD}


@dataclass
class Outputs:
    loss: None
    logits: torch.Tensor


class Dataclass(Network):
    def head(self, features_BD):
        return Outputs(None, self.fc(features_BD))


class ChosenClass(Network):
    def head(self, features_BD):
        return self.fc(features_BD).argmax(1)


class TopClasses(Network):
    def head(self, features_BD):
        scores, labels = self.fc(features_BD).softmax(1).topk(3)
        return {"scores": scores, "labels": labels}


class Gate(Network):
    """A layer of its trunk is registered after the output layer."""

    def make(self):
        self.fc, self.gate = nn.Linear(WIDTH, CLASSES), nn.Linear(WIDTH, WIDTH)

    def features(self, images_BCHW):
        features_BD = self.trunk(images_BCHW)
        return features_BD * torch.sigmoid(self.gate(features_BD))

    def forward(self, images_BCHW):
        return self.fc(self.features(images_BCHW))


class ConvolutionThenMean(Network):
    def make(self):
        self.fc = nn.Conv2d(WIDTH, CLASSES, 1)

    def features(self, images_BCHW):
        return self.trunk[:3](images_BCHW).mean((2, 3))

    def forward(self, images_BCHW):
        return self.fc(self.trunk[:3](images_BCHW)).mean((2, 3))


class MapsOfClasses(ConvolutionThenMean):
    def forward(self, images_BCHW):
        maps_BCHW = self.fc(self.trunk[:3](images_BCHW))
        return maps_BCHW.mean((2, 3)), maps_BCHW


class CosineLinear(nn.Linear):
    def forward(self, features_BD):
        return functional.linear(functional.normalize(features_BD), functional.normalize(self.weight))


class Cosine(Network):
    def make(self):
        self.fc = CosineLinear(WIDTH, CLASSES, bias=False)

    def head(self, features_BD):
        return 30 * self.fc(features_BD)


class MarginInTraining(Network):
    def make(self):
        self.weight = parameter(CLASSES, WIDTH)

    def head(self, features_BD):
        cosines = functional.linear(functional.normalize(features_BD), functional.normalize(self.weight))
        return 30 * (torch.cos(cosines.acos() + 0.5) if self.training else cosines)


class BareProduct(Network):
    def make(self):
        self.weight = parameter(CLASSES, WIDTH)

    def head(self, features_BD):
        return features_BD @ self.weight.t()


class BareEinsum(BareProduct):
    def head(self, features_BD):
        return torch.einsum("bd,kd->bk", features_BD, self.weight)


class BareSum(BareProduct):
    def head(self, features_BD):
        return (features_BD[:, None] * self.weight).sum(-1)


class BareCosine(BareProduct):
    def head(self, features_BD):
        return functional.cosine_similarity(features_BD[:, None], self.weight[None], dim=-1)


class Prototypes(BareProduct):
    def head(self, features_BD):
        return -torch.cdist(features_BD, self.weight)


class WeightOfALayer(Network):
    def head(self, features_BD):
        return functional.linear(features_BD, self.fc.weight, self.fc.bias)


class LooksAtItsLayer(Network):
    """Its code wants a weight where an identity would be."""

    def head(self, features_BD):
        return self.fc(features_BD.to(self.fc.weight.dtype))


class TextsOfClasses(Network):
    def make(self):
        self.register_buffer("texts", torch.randn(CLASSES, WIDTH))

    def head(self, features_BD):
        return 100 * functional.normalize(features_BD) @ self.texts.t()


class ClassesToGroups(Network):
    def make(self):
        super().make()
        self.register_buffer("groups", torch.rand(CLASSES, 3))

    def head(self, features_BD):
        return self.fc(features_BD).softmax(1) @ self.groups


class WeightNorm(Network):
    def make(self):
        self.fc = parametrizations.weight_norm(nn.Linear(WIDTH, CLASSES))


class SpectralNorm(Network):
    def make(self):
        self.fc = parametrizations.spectral_norm(nn.Linear(WIDTH, CLASSES))


class Bilinear(Network):
    def make(self):
        self.fc = nn.Bilinear(WIDTH, WIDTH, CLASSES)

    def head(self, features_BD):
        return self.fc(features_BD, features_BD)


class Lazy(Network):
    def make(self):
        self.fc = nn.LazyLinear(CLASSES)

    def head(self, features_BD):
        return self.fc(features_BD).softmax(1)


class HiddenLayer(Network):
    def make(self):
        self.fc = nn.Sequential(nn.Linear(WIDTH, 12), nn.ReLU(), nn.Dropout(), nn.Linear(12, CLASSES))

    def features(self, images_BCHW):
        return self.fc[:2](self.trunk(images_BCHW))


class SumOfBranches(Network):
    def make(self):
        self.wide = nn.Linear(WIDTH, CLASSES)
        self.deep = nn.Sequential(nn.Linear(WIDTH, 4), nn.ReLU(), nn.Linear(4, CLASSES))

    def head(self, features_BD):
        return self.wide(features_BD) + self.deep(features_BD)


class Splines(nn.Module):
    def __init__(self):
        super().__init__()
        self.base, self.splines = parameter(CLASSES, WIDTH), parameter(CLASSES, WIDTH, 5)
        self.register_buffer("knots", torch.linspace(-1, 1, 5))

    def forward(self, features_BD):
        basis = torch.exp(-((features_BD[..., None] - self.knots) ** 2)).flatten(1)
        return functional.linear(functional.silu(features_BD), self.base) + basis @ self.splines.flatten(1).t()


class SplineHead(Network):
    def make(self):
        self.fc = Splines()


class Experts(Network):
    def make(self):
        self.gate = nn.Linear(WIDTH, 3)
        self.experts = nn.ModuleList(nn.Linear(WIDTH, CLASSES) for _ in range(3))

    def head(self, features_BD):
        shares_BE = self.gate(features_BD).softmax(1)
        return sum(shares_BE[:, [i]] * expert(features_BD) for i, expert in enumerate(self.experts))


class TwoTasks(Network):
    def make(self):
        self.age, self.sex = nn.Linear(WIDTH, 1), nn.Linear(WIDTH, 2)

    def head(self, features_BD):
        return self.age(features_BD), self.sex(features_BD)


class TwoTasksWithHiddenLayers(Network):
    def make(self):
        self.age, self.sex = (nn.Sequential(nn.Linear(WIDTH, 8), nn.ReLU(), nn.Linear(8, width)) for width in (1, 2))

    def head(self, features_BD):
        return {"age": self.age(features_BD).squeeze(1), "sex": self.sex(features_BD)}


class Hierarchy(Network):
    """The second output layer sees what the first puts out."""

    def make(self):
        self.coarse, self.fine = nn.Linear(WIDTH, 3), nn.Linear(WIDTH + 3, CLASSES)

    def head(self, features_BD):
        coarse_BK = self.coarse(features_BD)
        return coarse_BK.softmax(1), self.fine(torch.cat([features_BD, coarse_BK], 1)).softmax(1)


class EmbeddingAndLogits(Network):
    def make(self):
        self.embedding, self.fc = nn.Linear(WIDTH, 12), nn.Linear(12, CLASSES)

    def features(self, images_BCHW):
        return self.embedding(self.trunk(images_BCHW))

    def head(self, features_BD):
        embedding_BD = self.embedding(features_BD)
        return self.fc(embedding_BD), embedding_BD


class HeadInTraining(Network):
    def make(self):
        self.fc, self.other = nn.Linear(WIDTH, CLASSES), nn.Linear(WIDTH, 3)

    def head(self, features_BD):
        return (self.fc(features_BD), self.other(features_BD)) if self.training else self.fc(features_BD)


class SharedLayer(Network):
    """Its only layer is called twice: it cannot be taken out of one place."""

    def make(self):
        self.fc = nn.Linear(WIDTH, WIDTH)

    def features(self, images_BCHW):
        return functional.relu(self.fc(self.trunk(images_BCHW)))

    def head(self, features_BD):
        return self.fc(functional.relu(self.fc(features_BD)))


class ScriptedTrunk(Network):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = torch.jit.script(self.trunk.eval())


class WithoutOutputLayer(Network):
    def make(self):
        self.fc = nn.Identity()


class ClassToken(Network):
    def make(self):
        self.patches, self.token = nn.Conv2d(3, WIDTH, 8, 8), parameter(1, 1, WIDTH)
        self.block = nn.TransformerEncoderLayer(WIDTH, 2, 32, batch_first=True, norm_first=True)
        self.norm, self.fc = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES)

    def features(self, images_BCHW):
        patches_BTD = self.patches(images_BCHW).flatten(2).transpose(1, 2)
        token_BTD = self.token.expand(len(patches_BTD), -1, -1)
        return self.norm(self.block(torch.cat([token_BTD, patches_BTD], 1)))[:, 0]

    def forward(self, images_BCHW):
        return self.fc(self.features(images_BCHW))


class TransformerWithoutOutputLayer(ClassToken):
    def forward(self, images_BCHW):
        return self.features(images_BCHW)


class ConvolutionOverSequence(Network):
    """Channels at one position are no tokens."""

    def make(self):
        self.fc = nn.Conv1d(WIDTH, CLASSES, 1)

    def head(self, features_BD):
        return self.fc(features_BD[:, :, None]).squeeze(2)


CERTAIN = [
    each
    for each in list(globals().values())
    if isinstance(each, type) and issubclass(each, Network) and each is not Network
]


class NormBehind(Network):
    def make(self):
        super().make()
        self.norm = nn.BatchNorm1d(CLASSES)

    def head(self, features_BD):
        return self.norm(self.fc(features_BD))


class OutputsAtTwoDepths(Network):
    def make(self):
        self.other, self.second = nn.Linear(WIDTH, CLASSES), nn.Conv2d(WIDTH, 32, 3, stride=2)
        self.fc = nn.Linear(32, CLASSES)

    def features(self, images_BCHW):
        return self.second(self.trunk[:3](images_BCHW)).relu().mean((2, 3))

    def forward(self, images_BCHW):
        first_BCHW = self.trunk[:3](images_BCHW)
        second_BCHW = self.second(first_BCHW).relu()
        return self.fc(second_BCHW.mean((2, 3))), self.other(first_BCHW.mean((2, 3)))


class TwoTokens(Network):
    """As distilled transformers."""

    def make(self):
        self.first, self.second = nn.Linear(WIDTH, CLASSES), nn.Linear(WIDTH, CLASSES)

    def tokens(self, images_BCHW):
        return self.trunk[:3](images_BCHW).flatten(2).transpose(1, 2)

    def features(self, images_BCHW):
        return self.tokens(images_BCHW)[:, 0]

    def forward(self, images_BCHW):
        tokens_BTD = self.tokens(images_BCHW)
        return (self.first(tokens_BTD[:, 0]) + self.second(tokens_BTD[:, 1])) / 2


class ConvolutionReluMean(ConvolutionThenMean):
    """As SqueezeNet."""

    def forward(self, images_BCHW):
        return self.fc(self.trunk[:3](images_BCHW)).relu().mean((2, 3))


class FeaturesAndProjection(Network):
    """As in contrastive learning; both have length 1."""

    def make(self):
        self.projection = nn.Sequential(nn.Linear(WIDTH, 12), nn.ReLU(), nn.Linear(12, 8))

    def head(self, features_BD):
        return functional.normalize(features_BD), functional.normalize(self.projection(features_BD))


class Pyramid(Network):
    """A list of maps, the lowest first."""

    def make(self):
        self.second = nn.Sequential(nn.Conv2d(WIDTH, 32, 3, stride=2), nn.ReLU())

    def features(self, images_BCHW):
        return self.second(self.trunk[:3](images_BCHW)).mean((2, 3))

    def forward(self, images_BCHW):
        first_BCHW = self.trunk[:3](images_BCHW)
        return [first_BCHW, self.second(first_BCHW)]


class Gated(Network):
    """Its output is taken, as a gate may end hidden layers too; that is said."""

    def make(self):
        self.fc = nn.Linear(WIDTH, 2 * CLASSES)

    def head(self, features_BD):
        return functional.glu(self.fc(features_BD))

    def features(self, images_BCHW):
        return self.head(self.trunk(images_BCHW))


DOUBTFUL = [
    NormBehind, OutputsAtTwoDepths, TwoTokens, ConvolutionReluMean, FeaturesAndProjection, Pyramid, Gated,
]  # fmt: skip


class Embedding(FeaturesAndProjection):
    def head(self, features_BD):
        return functional.normalize(self.projection(features_BD))


class CutAfterHiddenLayer(Network):
    def head(self, features_BD):
        return functional.relu(self.fc(features_BD))


class Autoencoder(Network):
    def make(self):
        self.encoder = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.ReLU(), nn.Conv2d(8, 4, 4, 4), nn.ReLU())
        self.decoder = nn.Sequential(nn.ConvTranspose2d(4, 8, 4, 4), nn.ReLU(), nn.ConvTranspose2d(8, 3, 4, 4))

    def forward(self, images_BCHW):
        return self.decoder(self.encoder(images_BCHW)).sigmoid()


class UNet(Network):
    def make(self):
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, WIDTH, 3, 2, 1)
        self.up, self.fc = nn.ConvTranspose2d(WIDTH, 8, 2, 2), nn.Conv2d(WIDTH, 2, 1)

    def forward(self, images_BCHW):
        first_BCHW = self.first(images_BCHW).relu()
        return self.fc(torch.cat([first_BCHW, self.up(self.second(first_BCHW).relu())], 1))


class Detector(Network):
    def make(self):
        self.second = nn.Conv2d(WIDTH, 32, 3, stride=2)
        self.classes = nn.ModuleList([nn.Conv2d(WIDTH, 4, 1), nn.Conv2d(32, 4, 1)])

    def forward(self, images_BCHW):
        first_BCHW = self.trunk[:3](images_BCHW)
        maps = [first_BCHW, self.second(first_BCHW).relu()]
        return [layer(maps_BCHW) for layer, maps_BCHW in zip(self.classes, maps, strict=True)]


REFUSED = {Embedding: "trunk", CutAfterHiddenLayer: "trunk", Autoencoder: "encoder", UNet: "second", Detector: "second"}


class FixedSize(nn.Sequential):
    preprocess = Network.preprocess

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 4, 16, 16), nn.Flatten(), nn.Linear(4 * 3 * 3, 2))


class Diverged(Network):
    def __init__(self) -> None:
        super().__init__()
        nn.init.constant_(self.trunk[0].weight, float("nan"))


class Logarithm(Network):
    def head(self, features_BD):
        return self.fc(torch.log(-1 - features_BD))


def scripted():
    return torch.jit.script(Sequence())


class Sequence(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(3 * 32 * 32, 2))


def compiled():
    return torch.compile(Plain())


compiled.preprocess = Network.preprocess
