"""Which of the causal language models of transformers have their Hessian measured: products on tiny random models of
every class, against the second derivative of the model's own loss. Writes the list in docs/curvature.md.

python tests/bench/architectures.py [CLASS ...]   (from the root, with PYTHONPATH=tests/helpers:tests/curvature)

Every class gets one shape, and the first of the variants below that its configuration accepts; what no variant builds,
or does not run itself, is listed with that reason.
"""

import signal
import sys

import torch
import transformers
from bench import with_table
from spectral_collapse.curvature import hessian_operator
from spectral_collapse.record import paths, provenance
from test_architectures import SHAPE, blocks, direction, hessian_product
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

DOCUMENT = paths.ROOT / "docs" / "curvature.md"
EXPERTS = {"num_experts": 2, "n_routed_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 12}
VARIANTS = ({}, {"head_dim": 4}, {"head_dim": 4} | EXPERTS)
MOST = 200_000  # parameters
PATIENCE = 60  # seconds, in which no tower of images is built
TOLERANCE = 1e-5
FUSED, LOGITS = "by the fused head", "through their own logits"
UNBUILT = "no small model of the common shape could be made from their configuration"
SLOW = "with towers of images, sound or bytes, too large to build small"
OWN = "do not run at that shape themselves"


def built(kind: str, name: str) -> transformers.PreTrainedModel | None:
    """A small model of a class; None where no variant makes one."""
    for variant in VARIANTS:
        try:
            config = transformers.AutoConfig.for_model(kind, **SHAPE | variant)
            torch.manual_seed(1)
            model = getattr(transformers, name)(config).eval()
        except TimeoutError:
            raise
        except Exception:  # whatever a configuration or a class may raise
            continue
        if sum(p.numel() for p in model.parameters()) <= MOST:
            return model
    return None


def measured(kind: str, name: str) -> str:
    """FUSED or LOGITS where the product is that of the model's own loss; otherwise why there is none."""
    if (model := built(kind, name)) is None:
        return UNBUILT
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding):
            module.padding_idx = None  # reverse mode would drop that row
    reason = OWN
    for dtype in (torch.float64, torch.float32):  # kernels of experts take float32 alone
        model, tokens = model.to(dtype), blocks()
        n = sum(p.numel() for p in model.parameters() if p.requires_grad)
        v = direction(n).to(dtype)
        try:
            expected = hessian_product(model, tokens, v)
        except TimeoutError:
            raise
        except Exception:  # the model's own
            continue
        try:
            operator = hessian_operator(model, tokens)
            apart = float((operator @ v - expected).norm() / expected.norm())
        except ValueError as error:
            return str(error)
        if apart < TOLERANCE:
            return FUSED if operator.fused else LOGITS
        reason = f"products {apart:.0e} off"
    return reason


def timed(kind: str, name: str) -> str:
    """`measured`, within PATIENCE."""

    def late(*_: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, late)
    signal.alarm(PATIENCE)
    try:
        return measured(kind, name)
    except TimeoutError:
        return SLOW
    finally:
        signal.alarm(0)


def lines(found: dict[str, str]) -> list[str]:
    """A table of the outcomes, the measured ones first."""
    order = [FUSED, LOGITS, *sorted(set(found.values()) - {FUSED, LOGITS})]
    rows = ["| outcome | classes | names |", "|---|---|---|"]
    for outcome in order:
        names = sorted({name for name, what in found.items() if what == outcome}, key=str.lower)
        short = ", ".join(name.removesuffix("ForCausalLM").removesuffix("LMHeadModel") for name in names)
        rows.append(f"| {'measured ' if outcome in (FUSED, LOGITS) else ''}{outcome} | {len(names)} | {short} |")
    return rows


def main(chosen: list[str]) -> None:
    """Measures the chosen classes and prints; all of them, if none is named, into the document."""
    transformers.logging.set_verbosity_error()
    found = {}
    for kind, names in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items():
        name = names if isinstance(names, str) else names[0]
        if name not in found and (not chosen or name in chosen):
            found[name] = timed(kind, name)
            print(f"{name}: {found[name]}", flush=True)
    if not chosen:
        text = with_table(DOCUMENT.read_text(encoding="utf-8"), "architectures", lines(found))
        provenance.write_text(DOCUMENT, text)


if __name__ == "__main__":
    main(sys.argv[1:])
