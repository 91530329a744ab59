"""The smoke profile made smaller still, a model that need not be coherent; and what a test counts."""

TINY = {
    "documents": 400,
    "baseline_blocks": 256,
    "hidden_size": 32,
    "perplexity_bound": 1e6,
    "blocks_per_generation": 24,
    "evaluation_stories": 6,
    "lanczos_steps": 6,
}


def described(monkeypatch, module, name: str) -> list[str]:
    """The descriptions of all later calls of a function of the module, which goes on doing its work."""
    calls, original = [], getattr(module, name)

    def counted(*arguments, description, **options):
        calls.append(description)
        return original(*arguments, description=description, **options)

    monkeypatch.setattr(module, name, counted)
    return calls


def quiet(_: str) -> None:
    pass
