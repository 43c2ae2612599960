"""The classes and functions that a model file may name: a list of those known to be harmless.

Keras finds what a file names by importing a module and taking any attribute of it, and some of its
own classes read other files or hold code. So names are compared with a list of what is known to
compute on tensors and to do nothing else; a class that Keras adds later is refused until it stands
here.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator, Mapping
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

import keras

from tfdq.which_keras import installed

_KERAS: tuple[ModuleType, ...] = (keras,)
if installed("tf_keras"):
    import tf_keras

    _KERAS = (keras, tf_keras)
LIBRARIES = ("keras", "tf_keras", "tensorflow_model_optimization", "tfdq", "tensorflow")
"""Packages whose objects have to be on the list, though they may be registered with Keras."""

# Public names of Keras 3 and tf_keras, by namespace; one that a library lacks is passed over.
_PUBLIC = {
    "": "Model Sequential",
    "layers": """
        Activation ActivityRegularization Add AdditiveAttention AlphaDropout Attention Average
        AveragePooling1D AveragePooling2D AveragePooling3D BatchNormalization Bidirectional
        CategoryEncoding CenterCrop Concatenate Conv1D Conv1DTranspose Conv2D Conv2DTranspose
        Conv3D Conv3DTranspose ConvLSTM1D ConvLSTM2D ConvLSTM3D Cropping1D Cropping2D Cropping3D
        Dense DepthwiseConv1D DepthwiseConv2D Discretization Dot Dropout ELU EinsumDense Embedding
        Flatten GRU GRUCell GaussianDropout GaussianNoise GlobalAveragePooling1D
        GlobalAveragePooling2D GlobalAveragePooling3D GlobalMaxPooling1D GlobalMaxPooling2D
        GlobalMaxPooling3D GroupNormalization HashedCrossing Hashing Identity InputLayer
        IntegerLookup LSTM LSTMCell Layer LayerNormalization LeakyReLU LocallyConnected1D
        LocallyConnected2D Masking MaxPooling1D MaxPooling2D MaxPooling3D Maximum Minimum
        MultiHeadAttention Multiply Normalization PReLU Permute RNN RandomBrightness RandomContrast
        RandomCrop RandomFlip RandomHeight RandomRotation RandomTranslation RandomWidth RandomZoom
        ReLU RepeatVector Rescaling Reshape Resizing SeparableConv1D SeparableConv2D SimpleRNN
        SimpleRNNCell Softmax SpatialDropout1D SpatialDropout2D SpatialDropout3D
        SpectralNormalization StackedRNNCells StringLookup Subtract TextVectorization
        ThresholdedReLU TimeDistributed UnitNormalization UpSampling1D UpSampling2D UpSampling3D
        ZeroPadding1D ZeroPadding2D ZeroPadding3D
        AdaptiveAveragePooling1D AdaptiveAveragePooling2D AdaptiveAveragePooling3D
        AdaptiveMaxPooling1D AdaptiveMaxPooling2D AdaptiveMaxPooling3D AugMix AutoContrast
        ContrastLimitedAdaptiveHistogramEqualization CutMix Equalization GroupQueryAttention
        MaxNumBoundingBoxes MelSpectrogram MixUp Pipeline RMSNormalization RandAugment
        RandomColorDegeneration RandomColorJitter RandomElasticTransform RandomErasing
        RandomGaussianBlur RandomGrayscale RandomHue RandomInvert RandomPerspective
        RandomPosterization RandomSaturation RandomSharpness RandomShear ReversibleEmbedding
        STFTSpectrogram Solarization
    """,
    "layers.experimental": "SyncBatchNormalization",
    "optimizers": """
        Adadelta Adafactor Adagrad Adam AdamW Adamax Ftrl Lamb Lion LossScaleOptimizer
        MultiOptimizer Muon Nadam Optimizer RMSprop SGD ScheduleFreeAdamW
    """,
    "optimizers.legacy": "Adadelta Adagrad Adam Adamax Ftrl Nadam Optimizer RMSprop SGD",
    "optimizers.schedules": """
        CosineDecay CosineDecayRestarts ExponentialDecay InverseTimeDecay PiecewiseConstantDecay
        PolynomialDecay
    """,
    "losses": """
        BinaryCrossentropy BinaryFocalCrossentropy CTC CategoricalCrossentropy
        CategoricalFocalCrossentropy CategoricalGeneralizedCrossEntropy CategoricalHinge Circle
        CosineSimilarity Dice Hinge Huber KLDivergence LogCosh Loss MeanAbsoluteError
        MeanAbsolutePercentageError MeanSquaredError MeanSquaredLogarithmicError Poisson
        SparseCategoricalCrossentropy SquaredHinge Tversky
    """,
    "metrics": """
        AUC Accuracy BinaryAccuracy BinaryCrossentropy BinaryIoU CategoricalAccuracy
        CategoricalCrossentropy CategoricalHinge ConcordanceCorrelation CosineSimilarity F1Score
        FBetaScore FalseNegatives FalsePositives Hinge IoU KLDivergence LogCoshError Mean
        MeanAbsoluteError MeanAbsolutePercentageError MeanIoU MeanMetricWrapper MeanRelativeError
        MeanSquaredError MeanSquaredLogarithmicError MeanTensor Metric OneHotIoU OneHotMeanIoU
        PearsonCorrelation Poisson Precision PrecisionAtRecall R2Score Recall RecallAtPrecision
        RootMeanSquaredError SensitivityAtSpecificity SparseCategoricalAccuracy
        SparseCategoricalCrossentropy SparseTopKCategoricalAccuracy SpecificityAtSensitivity
        SquaredHinge Sum TopKCategoricalAccuracy TrueNegatives TruePositives
    """,
    "regularizers": "L1 L1L2 L2 OrthogonalRegularizer",
    "initializers": """
        Constant GlorotNormal GlorotUniform HeNormal HeUniform Identity LecunNormal LecunUniform
        Ones Orthogonal RandomNormal RandomUniform STFT TruncatedNormal VarianceScaling Zeros
    """,
    "constraints": "MaxNorm MinMaxNorm NonNeg RadialConstraint UnitNorm",
    "mixed_precision": "LossScaleOptimizer Policy",
    "dtype_policies": """
        DTypePolicy DTypePolicyMap FloatDTypePolicy GPTQDTypePolicy QuantizedDTypePolicy
        QuantizedFloat8DTypePolicy
    """,
    "quantizers": "AbsMaxQuantizer",
    "random": "SeedGenerator",
}

_TFMOT = "tensorflow_model_optimization.python.core"
_N_BIT = f"{_TFMOT}.quantization.keras.experimental.default_n_bit.default_n_bit_quantize"

# Names that Keras and tfmot do not make public, by module, as files name them.
_INTERNAL = {
    "keras.src.models.functional": "Functional",
    "tf_keras.src.engine.functional": "Functional",
    "tf_keras.src.layers.core.tf_op_layer": "TFOpLambda SlicingOpLambda",
    "tf_keras.src.layers.normalization.batch_normalization_v1": "BatchNormalization",
    "tf_keras.src.mixed_precision.loss_scale_optimizer": """
        LossScaleOptimizer LossScaleOptimizerV3
    """,
    # What others derive from: Keras makes them of plain names.
    "tf_keras.src.metrics.base_metric": "Reduce SumOverBatchSize SumOverBatchSizeMetricWrapper",
    "keras.src.metrics.confusion_metrics": "SensitivitySpecificityBase",
    "tf_keras.src.metrics.confusion_metrics": "SensitivitySpecificityBase",
    "tf_keras.src.metrics.py_metric": "PyMetric",
    "tf_keras.src.optimizers.optimizer": "Optimizer",
    "tf_keras.src.applications.inception_resnet_v2": "CustomScaleLayer",
    "keras.src.applications.inception_resnet_v2": "CustomScaleLayer",
    # Operations on tensors in a Keras 3 graph; those that take functions are left out.
    "keras.src.ops.numpy": """
        Abs Absolute Add All Amax Amin Any Append Arange Arccos Arccosh Arcsin Arcsinh Arctan
        Arctan2 Arctanh Argmax Argmin Argsort Average Bincount BroadcastTo Ceil Clip Concatenate
        Copy Cos Cosh CountNonzero Cross Cumprod Cumsum Diag Diagonal Diff Digitize Divide
        DivideNoNan Dot Einsum Equal Exp Exp2 ExpandDims Expm1 Flip Floor FloorDivide Full FullLike
        GetItem Greater GreaterEqual Hstack Hypot Inner Isclose Isfinite Isinf Isnan Less LessEqual
        Linspace Log Log10 Log1p Log2 Logaddexp LogicalAnd LogicalNot LogicalOr LogicalXor Matmul
        Max Maximum Mean Median Meshgrid Min Minimum Mod Moveaxis Multiply NanToNum Ndim Negative
        NotEqual OnesLike Outer Pad Power Prod Quantile Ravel Reciprocal Repeat Reshape Roll Rot90
        Round Select Sign Sin Sinh Size Sort Split Sqrt Square Squeeze Stack Std Subtract Sum
        Swapaxes Take TakeAlongAxis Tan Tanh Tensordot Tile Trace Transpose Tril Triu TrueDivide
        Trunc Var Vdot Vstack Where ZerosLike
    """,
    "keras.src.ops.nn": """
        AdaptiveAveragePool AdaptiveMaxPool AveragePool BatchNorm BinaryCrossentropy
        CategoricalCrossentropy Celu Conv ConvTranspose DepthToSpace DepthwiseConv
        DotProductAttention Elu Gelu Glu HardShrink HardSigmoid HardSilu HardTanh LayerNorm
        LeakyRelu LogSigmoid LogSoftmax MaxPool Moments MultiHot Normalize OneHot RMSNorm Relu
        Relu6 Selu SeparableConv Sigmoid Silu SoftShrink Softmax Softplus Softsign SpaceToDepth
        SparseCategoricalCrossentropy SparsePlus SparseSigmoid Sparsemax Squareplus TanhShrink
        Threshold
    """,
    "keras.src.ops.math": "Erf Erfinv ExtractSequences FFT FFT2 Logsumexp RFFT Rsqrt STFT TopK",
    "keras.src.ops.core": "Cast ConvertToTensor SaturateCast Slice StopGradient Unstack",
    "keras.src.ops.image": "CropImages ExtractPatches PadImages RGBToGrayscale Resize",
    "keras.src.ops.linalg": "Norm",
    f"{_TFMOT}.quantization.keras.quantize_annotate": "QuantizeAnnotate",
    f"{_TFMOT}.quantization.keras.quantize_aware_activation": """
        NoOpActivation QuantizeAwareActivation
    """,
    f"{_TFMOT}.quantization.keras.quantize_config": "FixedQuantizeConfig OutputOnlyConfig",
    f"{_TFMOT}.quantization.keras.quantize_layer": "QuantizeLayer",
    f"{_TFMOT}.quantization.keras.quantize_wrapper": "QuantizeWrapper QuantizeWrapperV2",
    f"{_TFMOT}.quantization.keras.quantizers": """
        AllValuesQuantizer FixedQuantizer LastValueQuantizer MovingAverageQuantizer NoQuantizer
    """,
    f"{_TFMOT}.quantization.keras.default_8bit.default_8bit_quantize_configs": """
        Default8BitOutputQuantizeConfig NoOpQuantizeConfig
    """,
    f"{_TFMOT}.quantization.keras.default_8bit.default_8bit_quantize_registry": """
        Default8BitActivationQuantizeConfig Default8BitConvQuantizeConfig
        Default8BitConvTransposeQuantizeConfig Default8BitQuantizeConfig
        Default8BitQuantizeConfigRNN
    """,
    f"{_TFMOT}.quantization.keras.default_8bit.default_8bit_quantizers": """
        Default8BitConvTransposeWeightsQuantizer Default8BitConvWeightsQuantizer
    """,
    f"{_N_BIT}_configs": "DefaultNBitOutputQuantizeConfig NoOpQuantizeConfig",
    f"{_N_BIT}_registry": """
        DefaultNBitActivationQuantizeConfig DefaultNBitConvQuantizeConfig
        DefaultNBitConvTransposeQuantizeConfig DefaultNBitQuantizeConfig
        DefaultNBitQuantizeConfigRNN
    """,
    f"{_N_BIT}rs": "DefaultNBitConvTransposeWeightsQuantizer DefaultNBitConvWeightsQuantizer",
    f"{_TFMOT}.sparsity.keras.pruning_schedule": "ConstantSparsity PolynomialDecay",
    f"{_TFMOT}.sparsity.keras.pruning_wrapper": "PruneLowMagnitude",
}

_REGISTERED = frozenset(
    """
    BitDepthSqueeze ConvexCombination ConvolutionOrthogonalityRegularizer DefensiveQuantizeConfig
    FixedRangeQuantizer FusedAdd FusedBatchNormalization FusedConv2D FusedDense
    FusedDepthwiseConv2D FusedReLU InputQuantizer KernelQuantizer MedianSqueeze
    ObservedRangeQuantizer OrthogonalityRegularizer PortableQuantizeWrapper QuantizeWrapper
    QuantizedModel SRIPRegularizer SpectralRegularizer hard_sigmoid hard_silu
    """.split()  # noqa: SIM905 (a table of words)
)
"""Classes and functions of tfdq, which go by the names that they are registered under."""

_FUNCTIONS = {
    "activations": """
        celu elu exponential gelu glu hard_shrink hard_sigmoid hard_silu hard_swish hard_tanh
        leaky_relu linear log_sigmoid log_softmax mish relu relu6 selu sigmoid silu soft_shrink
        softmax softplus softsign sparse_plus sparse_sigmoid sparsemax squareplus swish tanh
        tanh_shrink threshold
    """,
    "losses": """
        KLD MAE MAPE MSE MSLE binary_crossentropy binary_focal_crossentropy
        categorical_crossentropy categorical_focal_crossentropy
        categorical_generalized_cross_entropy categorical_hinge circle cosine_similarity ctc dice
        hinge huber kl_divergence kld kullback_leibler_divergence log_cosh logcosh mae mape
        mean_absolute_error mean_absolute_percentage_error mean_squared_error
        mean_squared_logarithmic_error mse msle poisson sparse_categorical_crossentropy
        squared_hinge tversky
    """,
    "metrics": """
        binary_accuracy binary_crossentropy binary_focal_crossentropy categorical_accuracy
        categorical_crossentropy categorical_focal_crossentropy categorical_hinge
        concordance_correlation cosine_similarity hinge huber kl_divergence log_cosh
        mean_absolute_error mean_absolute_percentage_error mean_squared_error
        mean_squared_logarithmic_error pearson_correlation poisson sparse_categorical_accuracy
        sparse_categorical_crossentropy sparse_top_k_categorical_accuracy squared_hinge
        top_k_categorical_accuracy
    """,
}

# Names of Keras 1 and TensorFlow 1 that Keras still reads.
_FORMER_NAMES = {
    "BatchNormalizationV1": "BatchNormalization",
    "BatchNormalizationV2": "BatchNormalization",
}

# Keras compiles a model with these classes, derived from its own, where it runs on PyTorch.
_TORCH_OPTIMIZERS = "Adadelta Adagrad Adam AdamW Adamax Lion Nadam RMSprop SGD"

# A model of theirs would open the file that this argument names; a list of words is no file.
FILE_ARGUMENTS = ("vocabulary", "filepath", "weights")
_OPENING_FILES = ("StringLookup", "IntegerLookup", "TextVectorization")

# They hold code, or the path of a program; a class derived from one of them does, too.
_PROGRAMS = ("Lambda", "TFSMLayer", "JaxLayer", "FlaxLayer", "TorchModuleWrapper")


class HarmlessNames(NamedTuple):
    """The list, by the names that files use.

    Attributes:
        classes: From (module, class name) to the class.
        by_name: From a class name to the classes that go by it, for files that name no module.
        functions: From (module, function name) to the function; the module "builtins" stands for
            activations, losses and metrics.
    """

    classes: Mapping[tuple[str, str], type]
    by_name: Mapping[str, frozenset[type]]
    functions: Mapping[tuple[str, str], Any]


@cache
def harmless_names() -> HarmlessNames:
    """Return the list, with every alias under which Keras finds its classes and functions."""
    classes = _with_aliases(_listed_classes(), _PUBLIC)
    for name in _TORCH_OPTIMIZERS.split():
        module = f"keras.src.backend.torch.optimizers.torch_{name.lower()}"
        classes[module, name] = classes["keras.optimizers", name]
    by_name: dict[str, set[type]] = {}
    for (_, name), kind in classes.items():
        by_name.setdefault(name, set()).add(kind)
    for former, name in _FORMER_NAMES.items():
        by_name[former] = by_name[name]
    functions = _with_aliases(_listed_functions(), _FUNCTIONS)
    functions.update({("builtins", name): function for (_, name), function in functions.items()})
    return HarmlessNames(
        classes, {name: frozenset(kinds) for name, kinds in by_name.items()}, functions
    )


def is_harmless_object(item: Any) -> bool:
    """Tell whether a class or function of the libraries, found by a registered name, is listed."""
    if _package(item) == "tfdq":
        # All that is registered there is layers of numbers; what they hold is checked by itself.
        native = getattr(item, "__module__", "").startswith("tfdq.keras3.")
        return native or getattr(item, "__name__", "") in _REGISTERED
    names = harmless_names()
    return any(item is kind for kind in names.by_name.get(getattr(item, "__name__", ""), ()))


def is_of_libraries(item: Any) -> bool:
    """Tell whether a class or function belongs to Keras, tf_keras, TensorFlow, tfmot or tfdq."""
    return _package(item) in LIBRARIES


def opens_files(kind: Any) -> bool:
    """Tell whether a class is one of those that read a file if an argument names it."""
    return _derives(kind, _OPENING_FILES)


def is_program(kind: Any) -> bool:
    """Tell whether a class takes code, or the path of a program, from its configuration."""
    return _derives(kind, _PROGRAMS)


def is_unlisted_name(name: str) -> bool:
    """Tell whether Keras has a layer of a name that is not on the list."""
    return name not in harmless_names().by_name and any(
        hasattr(library.layers, name) for library in _KERAS
    )


def is_model_class(kind: Any) -> bool:
    """Tell whether a class is one of models."""
    return isinstance(kind, type) and issubclass(kind, tuple(library.Model for library in _KERAS))


def _derives(kind: Any, names: tuple[str, ...]) -> bool:
    bases = tuple(
        getattr(library.layers, name)
        for library in _KERAS
        for name in names
        if hasattr(library.layers, name)
    )
    return isinstance(kind, type) and issubclass(kind, bases)


def _package(item: Any) -> str:
    return str(getattr(item, "__module__", None)).split(".")[0]


def _listed_classes() -> Iterator[tuple[str, str, type]]:
    """Return the namespace, the name and the class of every entry that is installed."""
    for path, module, names in _namespaces(_PUBLIC):
        for name in names.split():
            if inspect.isclass(getattr(module, name, None)):
                yield path, name, getattr(module, name)
    for path, names in _INTERNAL.items():
        try:
            module = importlib.import_module(path)
        except ModuleNotFoundError:
            # Another release of Keras or tfmot; no file can name its classes by this module.
            continue
        for name in names.split():
            if inspect.isclass(getattr(module, name, None)):
                yield path, name, getattr(module, name)


def _listed_functions() -> Iterator[tuple[str, str, Any]]:
    for path, module, names in _namespaces(_FUNCTIONS):
        for name in names.split():
            if inspect.isfunction(getattr(module, name, None)):
                yield path, name, getattr(module, name)


def _namespaces(table: Mapping[str, str]) -> Iterator[tuple[str, ModuleType, str]]:
    """Return each namespace of a table in each library that has it: path, module, entry."""
    for library in _KERAS:
        for namespace, entry in table.items():
            found: Any = library
            for part in namespace.split(".") if namespace else ():
                found = getattr(found, part, None)
            if found is not None:
                path = ".".join(filter(None, (library.__name__, namespace)))
                yield path, found, entry


def _with_aliases(
    listed: Iterator[tuple[str, str, Any]], namespaces: Mapping[str, str]
) -> dict[tuple[str, str], Any]:
    """Add the module of the definition, public aliases, and the names that tf_keras reads as its.

    tf_keras writes and reads `keras.layers` for its own `tf_keras.layers`, and `keras.src` for its
    `tf_keras.src`. Where Keras 3 has a class of that name as well, it is on the list, too.
    """
    entries: dict[tuple[str, str], Any] = {}
    for path, name, item in listed:
        entries[path, name] = item
        entries.setdefault((item.__module__, item.__name__), item)
    items = {id(item) for item in entries.values()}
    for path, module, _ in _namespaces(namespaces):
        for name in dir(module):
            # A class goes by its capital names: tf_keras has functions that go by the others.
            usual = not inspect.isclass(getattr(module, name)) or name[0].isupper()
            if usual and id(getattr(module, name)) in items:
                entries[path, name] = getattr(module, name)
    for (path, name), item in list(entries.items()):
        if path.split(".")[0] == "tf_keras":
            entries.setdefault((path.removeprefix("tf_"), name), item)
    return entries
