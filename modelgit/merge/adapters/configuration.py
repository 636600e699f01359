"""What `adapter_config.json` says of the factors beside it (PEFT's format), and what it is for merged ones.

The change of a module is scaling * B A. The scaling is alpha / r, or alpha / sqrt(r) with `use_rslora`; both alpha and
r can be set for modules by pattern. Configurations come from other people: what is not understood is refused.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modelgit.errors import Conflict, FormatError, UsageError

MAX_BYTES = 1 << 20
MAX_RANK = 1 << 16
MAX_PATTERN, MAX_REPEATS = 256, 3  # expressions of other people: matching must end
REPEATS, REPEATED_GROUP = re.compile(r"(?<!\\)[*+{]"), re.compile(r"\)[*+{]")
# What differs between adapters in one of these is a conflict.
SAME = ("base_model_name_or_path", "fan_in_fan_out", "task_type", "layer_replication")
REFUSED = ("use_dora", "lora_bias", "use_qalora", "alora_invocation_tokens", "trainable_token_indices", "arrow_config")
REBASED = ("pissa", "olora", "corda", "loftq", "lora_ga")  # initialisations that change the base's weights too
Table = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Configuration:
    """The configuration of one adapter, whole, and what matters for its factors."""

    table: Table

    def scaling(self, module: str, rank: int) -> float:
        """Returns the factor on a module's product; `rank` is that of its factors. Raises FormatError."""
        rank_said = found_by(self.table.get("rank_pattern") or {}, module, self.table["r"])
        alpha = found_by(self.table.get("alpha_pattern") or {}, module, self.table["lora_alpha"])
        if rank_said != rank:
            raise FormatError(f"adapter_config.json: {module}: r is {rank_said}, but its factors are of rank {rank}")
        return float(alpha) / (math.sqrt(rank) if self.table.get("use_rslora") else rank)


def found_by(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """Returns the value of the pattern that a module's name matches as its last parts, as PEFT matches."""
    for pattern, value in patterns.items():
        if len(pattern) > MAX_PATTERN or len(REPEATS.findall(pattern)) > MAX_REPEATS or REPEATED_GROUP.search(pattern):
            told = f"at most {MAX_PATTERN} characters and {MAX_REPEATS} repetitions, none of a group"
            raise FormatError(f"adapter_config.json: pattern {pattern[:40]!r}: expected {told}: it could take for ever")
        try:
            if re.fullmatch(rf"(?:.*\.)?(?:{pattern})", module):
                return value
        except re.error as error:
            raise FormatError(f"adapter_config.json: pattern {pattern!r}: {error}") from error
    return default


def read_configuration(data: bytes, where: str) -> Configuration:
    """Returns an adapter's configuration.

    Raises:
        FormatError: it is malformed. UsageError: it is of a kind that cannot be merged exactly, by name.
    """
    try:
        if len(data) > MAX_BYTES:
            raise ValueError(f"{len(data)} bytes, expected at most {MAX_BYTES}")
        table = json.loads(data)
        if not isinstance(table, dict):
            raise ValueError(f"expected a table, got {type(table).__name__}")
        kind = table.get("peft_type", "LORA")
        numbers = [table["r"], *(table.get("rank_pattern") or {}).values()]
        alphas = [table["lora_alpha"], *(table.get("alpha_pattern") or {}).values()]
    except (ValueError, RecursionError, AttributeError) as error:
        raise FormatError(f"{where}: {error}") from error
    except KeyError as error:
        raise FormatError(f"{where}: expected '{error.args[0]}', got none") from error
    if any(type(rank) is not int or not 0 < rank <= MAX_RANK for rank in numbers):
        raise FormatError(f"{where}: r: expected a number from 1 to {MAX_RANK}, got {numbers}")
    if any(isinstance(a, bool) or not isinstance(a, int | float) or not math.isfinite(a) for a in alphas):
        raise FormatError(f"{where}: lora_alpha: expected a number, got {alphas}")
    if kind != "LORA":
        raise UsageError(f"{where}: an adapter of kind {kind}: only LoRA's products can be merged")
    for name in REFUSED:
        if table.get(name):
            raise UsageError(f"{where}: '{name}' is set: its change is no plain product, and cannot be merged as one")
    begun = table.get("init_lora_weights")
    if isinstance(begun, str) and begun.lower().startswith(REBASED):
        raise UsageError(f"{where}: init_lora_weights is {begun!r}, which changes the base: convert it first")
    return Configuration(table)


def differences(configurations: Mapping[str, Configuration]) -> list[Conflict]:
    """Returns the conflicts between adapters, by their names: of another base, or laid out otherwise."""
    conflicts = []
    (first, ours), *others = configurations.items()
    for name, theirs in others:
        for key in SAME:
            mine, its = ours.table.get(key), theirs.table.get(key)
            if mine != its and not (key == "fan_in_fan_out" and not mine and not its):
                where = f"adapter_config.json: {key}"
                conflicts.append(Conflict("adapter", where, f"{mine!r} as in {first}", f"{its!r} in {name}"))
    return conflicts


def merged_configuration(configurations: Sequence[Configuration], ranks: Mapping[str, int]) -> bytes:
    """Returns the configuration of merged factors, whose scaling is 1 everywhere; `ranks` are the modules'."""
    table = dict(configurations[0].table)
    common = Counter(ranks.values()).most_common(1)[0][0] if ranks else table["r"]
    pattern = {re.escape(module): rank for module, rank in sorted(ranks.items()) if rank != common}
    if any(found_by(pattern, module, common) != rank for module, rank in ranks.items()):  # one name ends another
        pattern = {"^" + name: rank for name, rank in pattern.items()}
    table.update(r=common, lora_alpha=common, use_rslora=False, rank_pattern=pattern, alpha_pattern=dict(pattern))
    targets = [c.table.get("target_modules") for c in configurations]
    if all(isinstance(target, list) for target in targets):
        table["target_modules"] = sorted({str(name) for target in targets for name in target or ()})
    elif any(target != targets[0] for target in targets):  # patterns: only the modules' own names say all
        table["target_modules"] = sorted(ranks)
    saved = {str(name) for c in configurations for name in c.table.get("modules_to_save") or ()}
    table["modules_to_save"] = sorted(saved) or None
    return (json.dumps(table, indent=2, sort_keys=True) + "\n").encode()
