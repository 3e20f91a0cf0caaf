"""From a user's request to one that can run: everything that can be refused is refused here."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from collections.abc import Sequence as Seq

from anyorder.core import lookup
from anyorder.core.errors import (
    ContextOverflow,
    InvalidRequest,
    PoolTooSmall,
    UnknownName,
    UnsupportedMethod,
)
from anyorder.core.method import Abilities, Method
from anyorder.core.options import build, overlay
from anyorder.core.request import CanvasLike, Guide, Prompt, Request
from anyorder.engine.canvas_text import encode_canvas
from anyorder.engine.handle import Prepared
from anyorder.engine.roles import Role
from anyorder.engine.text import EndRules
from anyorder.model.tokenizer import Tokenizer
from anyorder.sampling.canvas_guide import CanvasGuide, CanvasGuideCompiler
from anyorder.sampling.guide import GuideCompiler, GuideState

DEFAULT_NEW_TOKENS = 256


class Admission:
    """Validates requests against the models, the tokenizer and the pool."""

    def __init__(self, *, roles: dict[str, Role], tokenizer: Tokenizer | None) -> None:
        self._roles = roles
        self._target = roles["target"]
        self._tokenizer = tokenizer
        self._compiler: GuideCompiler | None = None
        self._canvas_compiler: CanvasGuideCompiler | None = None
        self._serial = itertools.count()

    def prepare(self, request: Request) -> Prepared:
        """Look up, tokenise and check; UserError says what is wrong and what is allowed."""
        method = self._method(request)
        abilities = self._target.abilities
        told_in_place = not (
            abilities.source_length or abilities.token_shift or abilities.canvas_length
        )
        may_begin = method.may_begin and told_in_place
        given = prompt = self.encode(request.prompt, "prompt", may_be_empty=may_begin)
        if not prompt and request.guidance_scale != 1.0:
            raise InvalidRequest(
                "guidance steers towards the prompt, and the prompt is empty; give at least one "
                "token, or leave guidance_scale at 1."
            )
        source: list[int] = []
        if abilities.source_length:
            source, prompt = given, list(abilities.text_rules.start_tokens)
            self._check_source(source, "prompt")
        ends = frozenset() if request.ignore_end else abilities.end_tokens
        ends |= frozenset(request.stop_tokens)
        canvas = self._canvas(request, method, ends)
        length = request.max_new_tokens if canvas is None else len(canvas)
        max_new_tokens = self._limit(request, length, prompt, method)
        method.check_length(max_new_tokens)
        negative = None
        negative_source: list[int] = []
        if request.guidance_scale != 1.0:
            negative = given if request.contrast_role else given[-1:]
            if request.negative_prompt is not None:
                negative = self.encode(request.negative_prompt, "negative_prompt")
            if request.contrast_role not in (None, *self._roles):
                raise UnknownName("role", str(request.contrast_role), self._roles)
            other = self._roles[request.contrast_role or "target"].abilities
            if other.kind != "decoder":
                kind = "encoder" if other.kind == "encoder" else f"{other.kind} drafter"
                raise InvalidRequest(
                    f"contrast_role {request.contrast_role!r} is the {kind} {other.name}, which "
                    "cannot run by itself; name a role with a whole model."
                )
            if source and not request.contrast_role:
                self._check_source(negative, "negative_prompt")
                negative, negative_source = prompt, negative
            elif source:
                negative = prompt
            self._check_negative(request, negative, max_new_tokens)
        self._check_ids("stop_tokens", request.stop_tokens)
        self._check_ids("logit_bias", list(request.logit_bias))
        if request.stop:
            self._require_tokenizer("stop strings")
        salt = f"shared {request.cache_salt}"
        if not request.prefix_cache:
            # Its own choices and beams still share; nobody else does.
            salt = f"private {next(self._serial)}"
        return Prepared(
            request=request,
            method=method,
            prompt=prompt,
            negative_prompt=negative,
            source=tuple(source),
            negative_source=tuple(negative_source),
            max_new_tokens=max_new_tokens,
            canvas=canvas,
            end_tokens=ends,
            banned=(*abilities.text_rules.banned, *self._banned(request.bad_words)),
            salt=salt,
        )

    def _canvas(
        self, request: Request, method: Method, ends: frozenset[int]
    ) -> tuple[int | None, ...] | None:
        """What the request fixes of the new text, None at open places."""
        if request.canvas is None:
            return None
        if not method.fills_canvas:
            able = [n for n in self.usable_methods() if _find(n).fills_canvas]
            raise UnsupportedMethod(
                f"{request.method} cannot fill in a canvas. Methods of this model that can: "
                f"{', '.join(able) or 'none'}."
            )
        canvas = self._encode_canvas(request.canvas)
        if None not in canvas:
            raise InvalidRequest(
                "the canvas has no place to fill in; mark one by None, or by <|mask|> in text."
            )
        wanted = request.max_new_tokens
        if wanted not in (None, len(canvas)):
            raise InvalidRequest(
                f"the canvas has {len(canvas)} places and max_new_tokens is {wanted}; leave "
                "max_new_tokens out."
            )
        if request.min_new_tokens > len(canvas):
            raise InvalidRequest(
                f"min_new_tokens is {request.min_new_tokens}, more than the {len(canvas)} places "
                "of the canvas."
            )
        for place, token in enumerate(canvas[:-1]):
            if token in ends:
                raise InvalidRequest(
                    f"place {place} of the canvas is end token {token}, which would cut off what "
                    "follows it; leave it out, or set ignore_end."
                )
        return tuple(canvas)

    def _encode_canvas(self, canvas: CanvasLike) -> list[int | None]:
        """Ids, and None where something is to be filled in; the mask token says that too."""
        tokens: list[int | None]
        if isinstance(canvas, str):
            tokenizer = self._require_tokenizer("a canvas given as text")
            name, context = self._target.abilities.name, self._target.abilities.context_length
            tokens = encode_canvas(canvas, tokenizer, name=name, context=context)
        else:
            self._check_ids("canvas", [token for token in canvas if token is not None])
            tokens = list(canvas)
        mask_token = self._target.abilities.mask_token
        return [None if token == mask_token else token for token in tokens]

    def guides(self, prepared: Prepared) -> Seq[GuideState | CanvasGuide | None]:
        """The request's guide for each run; compiled once, remembered for the next request."""
        request, num_runs = prepared.request, prepared.num_runs
        if request.guide is None:
            return [None] * num_runs
        tokenizer = self._require_tokenizer("a guide")
        if prepared.method.fills_canvas or prepared.method.any_order:
            return [self._canvas_guide(request.guide, prepared, tokenizer)] * num_runs
        if self._compiler is None:
            ends = self._target.abilities.end_tokens
            self._compiler = GuideCompiler(tokenizer.to_json(), ends)
        return [self._compiler.compile(request.guide) for _ in range(num_runs)]

    def _canvas_guide(self, guide: Guide, prepared: Prepared, tokenizer: Tokenizer) -> CanvasGuide:
        """A guide for tokens in any order, and some text that it allows exists."""
        abilities, request = self._target.abilities, prepared.request
        rules = abilities.text_rules
        if rules.first_token is not None or rules.last_tokens:
            raise InvalidRequest(
                f"texts of {abilities.name} begin or end with tokens of its own, and no guide can "
                f"say so where {request.method} fills places in any order; leave the guide out."
            )
        never = {token for token, bias in request.logit_bias.items() if bias == -math.inf}
        never |= {ids[0] for ids in prepared.banned if len(ids) == 1} - prepared.end_tokens
        never |= set() if abilities.mask_token is None else {abilities.mask_token}
        canvas = prepared.canvas or (None,) * prepared.max_new_tokens
        fixed = max((place for place, token in enumerate(canvas) if token is not None), default=0)
        if self._canvas_compiler is None:
            self._canvas_compiler = CanvasGuideCompiler(tokenizer.to_json())
        compiled = self._canvas_compiler.compile(
            guide,
            end_tokens=prepared.end_tokens,
            never=frozenset(never),
            first_end=max(request.min_new_tokens, fixed),
        )
        compiled.check(canvas)
        return compiled

    def rules(self, prepared: Prepared, guide: GuideState | CanvasGuide | None) -> EndRules:
        """When a text of this request is over."""
        return EndRules(
            end_tokens=prepared.end_tokens,
            stop=tuple(prepared.request.stop),
            max_new_tokens=prepared.max_new_tokens,
            tokenizer=self._tokenizer,
            guide=guide,
            continued=bool(prepared.prompt) and not prepared.source,
        )

    def encode(self, prompt: Prompt, name: str, *, may_be_empty: bool = False) -> list[int]:
        """Token ids of text, chat messages or ids, all inside the vocabulary; at least one, unless
        it may be empty."""
        if isinstance(prompt, str):
            tokens = self._require_tokenizer(f"a {name} given as text").encode(prompt)
            closing = self._target.abilities.closing_tokens
            if closing and tuple(tokens[-len(closing) :]) == closing:
                del tokens[-len(closing) :]  # the text goes on; they stand behind all of it
        elif not prompt:
            tokens = []
        elif all(isinstance(item, Mapping) for item in prompt):
            tokenizer = self._require_tokenizer("chat messages")
            tokens = tokenizer.apply_chat_template(
                [item for item in prompt if isinstance(item, Mapping)]
            )
        else:
            tokens = list(prompt)  # type: ignore[arg-type]  # checked right below
            self._check_ids(name, tokens)
        if not tokens and not may_be_empty:
            raise InvalidRequest(f"the {name} is empty; give at least one token.")
        return tokens

    def _method(self, request: Request) -> Method:
        name = request.method
        cls = _find(name)
        abilities, roles = self._target.abilities, tuple(self._roles)
        if cls.needs.missing(abilities, roles) is not None:
            cls.require(name, abilities, roles, self.usable_methods())
        options = overlay(cls, self._defaults(name), request.options)
        method = build(cls, options, kind=f"{name} option")
        missing = method.missing(self._models)
        if missing is not None:
            raise UnsupportedMethod(
                f"{name} with these options needs {missing}. Methods this model supports: "
                f"{', '.join(self.usable_methods())}."
            )
        method.check(request)
        if method.reads_text:
            self._require_tokenizer(name)
        if request.prompt_logprobs and abilities.source_length:
            raise InvalidRequest(
                f"the encoder of {abilities.name} reads the prompt and gives it no probabilities "
                "(prompt_logprobs); only models without an encoder can score one."
            )
        if request.prompt_logprobs and not method.scores_prompt:
            raise InvalidRequest(
                f"{name} does not score the prompt; use autoregressive for prompt_logprobs."
            )
        if request.embedding != "none" and (abilities.source_length or not method.scores_prompt):
            raise InvalidRequest(
                f"{name} gives no embedding of {abilities.name}'s prompt; use autoregressive and a "
                "model without an encoder."
            )
        return method

    def _check_source(self, tokens: list[int], name: str) -> None:
        """Does the encoder have room for it?"""
        abilities = self._target.abilities
        if len(tokens) > abilities.source_length:
            raise ContextOverflow(
                f"the {name} has {len(tokens)} tokens; the encoder of {abilities.name} reads at "
                f"most {abilities.source_length}. Give a shorter one."
            )
        pool = self._roles["encoder"].num_cache_tokens
        if len(tokens) > pool:
            raise PoolTooSmall(
                f"a {name} of {len(tokens)} tokens needs more than the encoder's cache of {pool} "
                "positions; raise cache_tokens."
            )

    @property
    def _models(self) -> dict[str, Abilities]:
        return {name: role.abilities for name, role in self._roles.items()}

    def _defaults(self, method: str) -> dict[str, object]:
        """The options that the engine's models bring for a method."""
        defaults: dict[str, object] = {}
        for abilities in self._models.values():
            defaults |= abilities.decoding.get(method, {})
        return defaults

    def usable_methods(self) -> list[str]:
        """Names of the methods that the engine's models support, with the options that a request
        which gives none has."""
        return [name for name in lookup.names("methods") if self._is_usable(name)]

    def _is_usable(self, name: str) -> bool:
        cls, abilities = _find(name), self._target.abilities
        if cls.needs.missing(abilities, tuple(self._roles)) is not None:
            return False
        if cls.reads_text and self._tokenizer is None:
            return False
        method = build(cls, self._defaults(name), kind=f"{name} option")
        return method.missing(self._models) is None

    def _limit(
        self, request: Request, wanted: int | None, prompt: list[int], method: Method
    ) -> int:
        """How many tokens may be made, within context and pool."""
        abilities = self._target.abilities
        num_closing = len(abilities.closing_tokens)
        context = abilities.context_length - num_closing
        pool = self._target.num_cache_tokens - num_closing
        room = context - len(prompt)
        if room < (1 if wanted is None else min(wanted, 1)):
            raise ContextOverflow(
                f"the prompt has {len(prompt)} tokens; {abilities.name}'s context of {context} "
                "leaves no room for new ones."
            )
        if wanted is None:
            wanted = max(request.min_new_tokens, min(DEFAULT_NEW_TOKENS, room))
        if wanted > room:
            raise ContextOverflow(
                f"a prompt of {len(prompt)} tokens and max_new_tokens of {wanted} exceed "
                f"{abilities.name}'s context of {context}; ask for at most {room} new tokens."
            )
        num_tokens = len(prompt) + wanted
        num_scratch = method.cached_length(num_tokens, abilities) - num_tokens
        num_scratch += 2 * (self._target.store.page_size - 1) * method.num_branches
        if num_tokens + num_scratch > pool:
            more = f", and {num_scratch} more that {request.method} works on,"
            scratch = more if num_scratch else ""
            raise PoolTooSmall(
                f"a prompt of {len(prompt)} tokens and max_new_tokens of {wanted}{scratch} need "
                f"more than the cache of {pool} positions; raise cache_tokens or ask for less."
            )
        for name, count in method.cached_elsewhere(num_tokens, self._models).items():
            count += 2 * (self._roles[name].store.page_size - 1) * method.num_branches
            pool = self._roles[name].num_cache_tokens
            if count > pool:
                raise PoolTooSmall(
                    f"a prompt of {len(prompt)} tokens and max_new_tokens of {wanted} need up to "
                    f"{count} positions of the {name} model's cache too, and it has "
                    f"{pool}; raise cache_tokens or ask for less."
                )
        return wanted

    def _check_negative(self, request: Request, negative: list[int], num_new: int) -> None:
        """Does the text behind another prompt fit by itself where it is run?"""
        role = request.contrast_role or "target"
        pool = self._roles[role].num_cache_tokens
        if len(negative) + num_new > pool:
            raise PoolTooSmall(
                f"a negative prompt of {len(negative)} tokens and max_new_tokens of {num_new} need "
                f"more than the {role} model's cache of {pool} positions; raise cache_tokens or "
                "ask for less."
            )

    def _banned(self, words: Seq[str]) -> tuple[tuple[int, ...], ...]:
        if not words:
            return ()
        tokenizer = self._require_tokenizer("bad_words")
        # A word is tokenised differently at the start of a text and after a space.
        spellings = [spelling for word in words for spelling in (word, f" {word}")]
        encoded = [tuple(tokenizer.encode(text, add_special=False)) for text in spellings]
        return tuple(dict.fromkeys(encoded))

    def _check_ids(self, name: str, tokens: Seq[int]) -> None:
        size = self._target.abilities.vocabulary_size
        for token in tokens:
            if type(token) is not int or not 0 <= token < size:
                raise InvalidRequest(f"{name} holds {token!r}; token ids are 0 to {size - 1}.")

    def _require_tokenizer(self, what: str) -> Tokenizer:
        if self._tokenizer is None:
            raise InvalidRequest(
                f"{what} needs a tokenizer, and {self._target.abilities.name} was loaded without "
                "one; give token ids."
            )
        return self._tokenizer


def _find(name: str) -> type[Method]:
    found: type[Method] = lookup.find("methods", name, kind="method")
    return found
