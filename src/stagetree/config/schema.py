"""Define the typed schema of one run's configuration.

Hydra composes plain values; `validation.check` turns them into a frozen `Config` or reports every error at once.
Field docstrings give units and say what `0`, `null` and empty mean; docs/configuration.md is made from them.
"""

from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, field_validator, model_validator

from stagetree.config.metrics import metric_name
from stagetree.redact import redact
from stagetree.tree.notation import parse_stages
from stagetree.tree.runs import Stage


class Frozen(BaseModel):
    """Base of all groups: immutable, unknown keys refused, no silent conversion of text to numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)

    @field_validator("*")
    @classmethod
    def _zero_has_no_sign(cls, value: Any) -> Any:
        return _unsigned(value)


def _unsigned(value: Any) -> Any:
    """Turn -0.0 into 0.0, since equal numbers are one configuration and have one uid."""
    if isinstance(value, tuple):
        return tuple(map(_unsigned, value)) if any(isinstance(part, float) for part in value) else value
    return value + 0.0 if isinstance(value, float) else value


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


Count = Annotated[int, Field(ge=1)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Floats = Annotated[tuple[Annotated[float, Field(allow_inf_nan=False)], ...], BeforeValidator(_as_tuple)]
Betas = Annotated[tuple[Fraction, Fraction], BeforeValidator(_as_tuple)]


def _size(value: Any) -> int | float:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if isinstance(value, float) and 0 < value < 1:
        return value
    raise ValueError(f"must be a whole number or a fraction below 1, got {value!r}")


def _auto_or_count(value: Any) -> int | str:
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    raise ValueError(f"must be auto or a whole number above 0, got {value!r}")


Size = Annotated[int | float, BeforeValidator(_size)]
AutoOrCount = Annotated[int | str, BeforeValidator(_auto_or_count)]


# ---------------------------------------------------------------- dataset


class Dataset(Frozen):
    """The settings that all data sets have."""

    root: str
    """Folder in which the data lies or to which it is downloaded."""
    mean: Floats = ()
    """Subtracted for each channel after pixels are divided by 255; one value serves all channels, empty: 0."""
    std: Floats = ()
    """Divided by for each channel; empty: 1."""
    val_size: Size = 0
    """The training images held out for validation: a count, a fraction below 1, or 0 for none."""
    val_seed: Seed = 0
    """Seed of that choice; `torch.utils.data.random_split` with this seed gives the same members."""
    duplicates: Literal["ignore", "warn", "error"] = "warn"
    """How to treat training images that are also in the test set."""

    @property
    def label(self) -> str:
        """Its name as people say it, such as that of its file."""
        return self.name  # pyright: ignore[reportAttributeAccessIssue] (each kind of data set has one)

    @model_validator(mode="after")
    def _std_is_positive(self):
        if any(value <= 0 for value in self.std):
            raise ValueError(f"std must be above 0 for each channel, got {list(self.std)}")
        return self


class HeldOutTest(Dataset):
    """A data set that may come without a test set of its own."""

    test_size: Size = 0
    """Images held out for the test when the data has no test set: a count or a fraction below 1."""
    test_seed: Seed = 0
    """Seed of that choice, which is made before the validation set is taken from the rest."""


class Digits(HeldOutTest):
    """scikit-learn's bundled handwritten digits, 1,797 images of 8x8 (UCI optdigits)."""

    name: Literal["digits"]


class Torchvision(Dataset):
    """A data set that torchvision downloads and checks."""

    name: Literal["mnist", "fashion_mnist", "kmnist", "qmnist", "usps", "svhn", "cifar10", "cifar100"]


class Emnist(Dataset):
    """EMNIST (Cohen et al., arXiv 1702.05373) in one of its splits."""

    name: Literal["emnist"]
    split: Literal["byclass", "bymerge", "balanced", "letters", "digits", "mnist"]
    """One of its six splits."""

    @property
    def label(self) -> str:
        return f"emnist-{self.split}"


class Npz(HeldOutTest):
    """The user's own arrays in one `.npz` file."""

    name: Literal["npz"]
    file: str
    """Relative to `root`. Keys: `train_x`, `train_y` and, if there is a test set, `test_x`, `test_y`; `classes`
    names the classes."""

    @property
    def label(self) -> str:
        return Path(self.file).name


class ImageFolder(HeldOutTest):
    """Images in a folder for each class, under `root/train` and `root/test`, or under `root` alone."""

    name: Literal["image_folder"]
    height: Count
    """Pixels; other images are resized."""
    width: Count
    """Pixels; other images are resized."""
    grayscale: bool = False
    """One channel instead of red, green and blue."""

    @property
    def label(self) -> str:
        return Path(self.root).resolve().name


AnyDataset = Annotated[Digits | Torchvision | Emnist | Npz | ImageFolder, Discriminator("name")]


# ---------------------------------------------------------------- model, optimizer, loss

Activation = Literal["relu", "leaky_relu", "tanh", "sigmoid", "gelu", "silu", "elu"]


class Model(Frozen):
    """A multilayer perceptron."""

    hidden_sizes: Annotated[tuple[Count, ...], BeforeValidator(_as_tuple)]
    """Units of each hidden layer; empty: softmax regression."""
    activation: Activation = "relu"
    """After each hidden layer, as torch.nn defines it, with its default parameters."""
    dropout: Fraction = 0.0
    """Probability that a hidden unit is zeroed in training."""

    def architecture(self, n_classes: int) -> str:
        """Describe the network as `4 layers (2048,1024,64,10)`; the input is not counted."""
        sizes = [*self.hidden_sizes, n_classes]
        return f"{len(sizes)} layer{'s' * (len(sizes) > 1)} ({','.join(map(str, sizes))})"

    def n_params(self, in_features: int, n_classes: int) -> int:
        """Count weights and biases."""
        sizes = [in_features, *self.hidden_sizes, n_classes]
        return sum((n_in + 1) * n_out for n_in, n_out in pairwise(sizes))


class Optimizer(Frozen):
    """Settings as torch.optim names and defines them; the learning rate comes from the schedule."""

    weight_decay: NonNegative = 0.0


class SGD(Optimizer):
    name: Literal["sgd"]
    momentum: NonNegative = 0.0
    dampening: NonNegative = 0.0
    nesterov: bool = False

    @model_validator(mode="after")
    def _nesterov_has_momentum(self):
        if self.nesterov and (self.momentum == 0 or self.dampening != 0):
            raise ValueError(
                "nesterov needs momentum above 0 and dampening 0, "
                f"got momentum={self.momentum}, dampening={self.dampening}"
            )
        return self


class Adam(Optimizer):
    name: Literal["adam"]
    betas: Betas = (0.9, 0.999)
    eps: Positive = 1e-8
    amsgrad: bool = False


class AdamW(Optimizer):
    name: Literal["adamw"]
    weight_decay: NonNegative = 0.01
    betas: Betas = (0.9, 0.999)
    eps: Positive = 1e-8
    amsgrad: bool = False


class NAdam(Optimizer):
    name: Literal["nadam"]
    betas: Betas = (0.9, 0.999)
    eps: Positive = 1e-8
    momentum_decay: NonNegative = 4e-3
    decoupled_weight_decay: bool = False


class RAdam(Optimizer):
    name: Literal["radam"]
    betas: Betas = (0.9, 0.999)
    eps: Positive = 1e-8
    decoupled_weight_decay: bool = False


class Adamax(Optimizer):
    name: Literal["adamax"]
    betas: Betas = (0.9, 0.999)
    eps: Positive = 1e-8


class RMSprop(Optimizer):
    name: Literal["rmsprop"]
    alpha: Fraction = 0.99
    eps: Positive = 1e-8
    momentum: NonNegative = 0.0
    centered: bool = False


class Adagrad(Optimizer):
    name: Literal["adagrad"]
    lr_decay: NonNegative = 0.0
    initial_accumulator_value: NonNegative = 0.0
    eps: Positive = 1e-10


class Adadelta(Optimizer):
    name: Literal["adadelta"]
    rho: Fraction = 0.9
    eps: Positive = 1e-6


AnyOptimizer = Annotated[
    SGD | Adam | AdamW | NAdam | RAdam | Adamax | RMSprop | Adagrad | Adadelta, Discriminator("name")
]


class CrossEntropy(Frozen):
    """Cross-entropy of the logits."""

    name: Literal["cross_entropy"]
    label_smoothing: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the target spread evenly over all classes."""
    class_weights: Floats = ()
    """A weight for each class; empty: all 1."""


class NLL(Frozen):
    """Negative log-likelihood on log-softmax outputs."""

    name: Literal["nll"]
    class_weights: Floats = ()
    """A weight for each class; empty: all 1."""


class MSE(Frozen):
    """Mean squared error between the outputs and one-hot labels."""

    name: Literal["mse"]


AnyLoss = Annotated[CrossEntropy | NLL | MSE, Discriminator("name")]


# ---------------------------------------------------------------- schedule


class Schedule(Frozen):
    """The stages of a run."""

    stages: Annotated[tuple[Stage, ...], BeforeValidator(parse_stages)]
    """Pairs of epochs and learning rate, trained in order."""
    reset_optimizer: bool = True
    """Start each stage with a fresh optimizer; `false` carries momentum and the like across the boundary."""


# ---------------------------------------------------------------- trainer, execution, tracking, report


class Trainer(Frozen):
    """The settings of training that decide the numbers; all of them enter the uid."""

    batch_size: Count = 32
    """Images in a minibatch; the last one of an epoch may be smaller."""
    eval_batch_size: Count = 1024
    """Images evaluated at a time."""
    shuffle: bool = True
    """A new order each epoch, from `(seed, epoch)`; `false`: the data's own order."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """`auto`: cuda, then mps, then cpu."""
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    """Precision of the matrix products; weights and sums stay float32. `tf32` is for cuda."""
    threads: Count = 1
    """CPU threads of one worker. Only with 1 are results the same bit for bit."""

    @model_validator(mode="after")
    def _tf32_is_for_cuda(self):
        if self.precision == "tf32" and self.device in ("cpu", "mps"):
            raise ValueError(f"precision tf32 is for cuda, got device {self.device} (set trainer.precision=float32)")
        return self


class Execution(Frozen):
    """The settings of a sweep's execution, which decide no number and are shared by all of its runs."""

    workers: AutoOrCount = "auto"
    """Units trained at a time; `auto`: as many as the launcher runs side by side, on GPUs one for each slot."""
    workers_per_device: Count = 1
    """Workers that share one GPU; each worker keeps to a GPU of its own otherwise."""
    pack_size: AutoOrCount = "auto"
    """Most members that train side by side; 1: no packing; `auto`: the fastest number in a short measurement."""
    share_prefixes: bool = True
    """Train equal schedule prefixes once."""
    fresh: bool = False
    """Train finished runs again; earlier results stay until the new ones replace them."""
    checkpoint_every_s: NonNegative = 60.0
    """Seconds between checkpoints within a stage, at the end of an epoch; a killed run continues from the last."""
    test_every_epoch: bool = False
    """Evaluate on the test set after each epoch, for display only."""


class Tracking(Frozen):
    """The store in which runs are recorded."""

    uri: str | None = None
    """MLflow tracking URI; `null`: SQLite in `output_dir/mlflow.db`."""
    experiment: Annotated[str, Field(min_length=1)] = "stagetree"
    """Name of the MLflow experiment."""
    artifacts: str | None = None
    """Destination of a new experiment's artifacts, a folder or a URI that MLflow can write, as `s3://bucket/path`;
    `null`: `output_dir/artifacts` for a database here, a server's own choice otherwise. It holds no password, since
    MLflow writes it into its database."""

    @model_validator(mode="after")
    def _artifacts_hold_no_secret(self):
        if self.artifacts and redact(self.artifacts) != self.artifacts:
            raise ValueError(
                f"artifacts must not hold a password, since MLflow writes it into its database, got {self.artifacts} "
                "(give the password in the environment, as the storage's own clients read it)"
            )
        return self


MetricName = Literal["val_acc", "test_acc", "val_loss", "test_loss", "train_acc", "train_loss", "train_seconds"]
"""The names in `config.metrics`; a test compares them."""


class Report(Frozen):
    """The settings of the leaderboard."""

    metric: Annotated[MetricName | None, BeforeValidator(metric_name)] = None
    """Column to rank by; `null`: `val_acc` where there is one, else `test_acc`. The lowest loss is best."""
    top: Count = 20
    """Lines to print; the file has all."""
    group_by: str | None = None
    """`seed`: mean, standard deviation and n over the runs that differ in this column alone."""
    output: str = "leaderboard.csv"
    """The file to write."""
    page: bool = True
    """Write a page beside that file, with the suffix `.html`, which opens in any browser."""

    @model_validator(mode="after")
    def _files_differ(self):
        if self.page and Path(self.output).suffix == ".html":
            raise ValueError(f"output is the table, {self.output} would be its page (name it .csv, or set page=false)")
        return self

    @property
    def page_path(self) -> Path | None:
        """The path of the page; `None` without one."""
        return Path(self.output).with_suffix(".html") if self.page else None


class Config(Frozen):
    """The complete configuration of one run."""

    dataset: AnyDataset
    model: Model
    optimizer: AnyOptimizer
    schedule: Schedule
    loss: AnyLoss
    trainer: Trainer
    execution: Execution = Execution()
    tracking: Tracking
    report: Report
    seed: Seed
    """Seed of initial weights, minibatch order and dropout."""
    output_dir: str
    """Folder of all outputs, relative to the folder in which the command runs."""
    quiet: bool = False
    """Print nothing but errors and failures."""

    @property
    def output_folder(self) -> Path:
        """The absolute path of `output_dir`."""
        return Path(self.output_dir).resolve()

    @property
    def store_uri(self) -> str:
        """MLflow's tracking URI; without one, SQLite in the output folder."""
        return self.tracking.uri or f"sqlite:///{self.output_folder / 'mlflow.db'}"
