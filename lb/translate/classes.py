"""Which Ingresses are ours: IngressClass objects, the class field and annotation, and the operator's options.

The rules, in order:

1. `spec.ingressClassName` decides when it is set. It wins over the annotation, as in ingress-nginx
   (`internal/ingress/controller/store/store.go`, GetIngressClass); the API does not say which one should.
2. Else the annotation `kubernetes.io/ingress.class`: deprecated, but "ingress controllers should still honor that
   annotation if present" (kubernetes/api networking/v1/types.go, IngressSpec). It needs no IngressClass object.
3. Else the default class (`ingressclass.kubernetes.io/is-default-class`). The API server applies it at admission, and
   denies an Ingress without a class while several classes are the default; files never went through admission.

A class is ours when its controller is `lb/ingress` or one that `--take-over` names, or when `--class` names the class
itself. When nothing names lb at all, every Ingress is served: `lb run export.json` just works.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import msgspec

from lb.objects.networking import Ingress, IngressClass
from lb.objects.view import View
from lb.problems import Origin, Problem
from lb.translate.options import Options

CONTROLLER = "lb/ingress"
CLASS_ANNOTATION = "kubernetes.io/ingress.class"
DEFAULT_CLASS_ANNOTATION = "ingressclass.kubernetes.io/is-default-class"

USUAL_CLASSES = {"k8s.io/ingress-nginx": "nginx"}
"""Class that a controller serves even where no IngressClass object says so (ingress-nginx: `--ingress-class`, default
`nginx`). IngressClasses are cluster-wide, so exports of namespaces often lack them."""


class Classes(msgspec.Struct, frozen=True):
    """The decision about all Ingresses, made once from all IngressClasses and the options."""

    everything: bool
    """Nothing names lb: every Ingress is served."""
    ours: frozenset[str]
    known: frozenset[str]
    """Names of the IngressClass objects."""
    defaults: tuple[str, ...]
    """Names of the default classes; there should be at most one."""
    problems: tuple[Problem, ...] = ()


def read_classes(view: View, options: Options) -> Classes:
    """Which class names are ours."""
    stored = [view.all("IngressClass")[key] for key in sorted(view.all("IngressClass"))]
    classes = [cast(IngressClass, one.object) for one in stored]
    controllers = {CONTROLLER, *options.take_over}
    ours = {one.metadata.name for one in classes if one.spec.controller in controllers}
    everything = not ours and not options.classes and not options.take_over
    known = frozenset(one.metadata.name for one in classes)
    usual = {USUAL_CLASSES[name] for name in options.take_over if name in USUAL_CLASSES}
    defaults = [one for one in stored if _is_default(cast(IngressClass, one.object))]
    return Classes(
        everything,
        frozenset(ours | set(options.classes) | (usual - known)),
        known,
        tuple(one.object.metadata.name for one in defaults),
        tuple(_too_many_defaults(one.origin for one in defaults)) if len(defaults) > 1 else (),
    )


def everything_is_served() -> Problem:
    """The note that says so (LB2001)."""
    return Problem(
        "LB2001",
        Origin(),
        "no IngressClass names the controller lb/ingress, and neither --class nor --take-over is given",
        why="every Ingress in the input is served, whichever class it names",
        fix="to choose, give --class NAME, --take-over CONTROLLER, or an IngressClass with the controller lb/ingress",
    )


def why_not_ours(classes: Classes, ingress: Ingress, origin: Origin) -> Problem | None:
    """None when the Ingress is ours, else the problem that says why it is not."""
    if classes.everything:
        return None
    name = ingress.spec.ingress_class_name
    if name is not None:
        return None if name in classes.ours else _foreign_field(classes, name, origin)
    annotation = (ingress.metadata.annotations or {}).get(CLASS_ANNOTATION, "")
    if annotation:
        return None if annotation in classes.ours else _foreign_annotation(annotation, origin)
    if any(default in classes.ours for default in classes.defaults):
        return None
    return Problem(
        "LB2002",
        origin,
        "the Ingress names no class, and no default class is lb's",
        fix="set spec.ingressClassName to a class of lb, or make that class the default",
        field="spec.ingressClassName",
    )


def _is_default(ingress_class: IngressClass) -> bool:
    return (ingress_class.metadata.annotations or {}).get(DEFAULT_CLASS_ANNOTATION) == "true"


def _too_many_defaults(origins: Iterable[Origin]) -> Iterable[Problem]:
    places = list(origins)
    names = ", ".join(origin.name for origin in places)
    for origin in places:
        yield Problem(
            "LB2004",
            origin,
            f"{len(places)} IngressClasses are the default: {names}",
            why="an Ingress without a class is served when one of them is lb's; an API server would refuse it",
            fix=f"leave the annotation {DEFAULT_CLASS_ANNOTATION} on one of them",
            field=f"metadata.annotations[{DEFAULT_CLASS_ANNOTATION}]",
        )


def _foreign_field(classes: Classes, name: str, origin: Origin) -> Problem:
    if name in classes.known:
        return Problem(
            "LB2002",
            origin,
            f"class `{name}` belongs to another controller",
            fix=f"to serve it, give --class {name}",
            field="spec.ingressClassName",
        )
    return Problem(
        "LB2003",
        origin,
        f"there is no IngressClass `{name}`",
        why="the Ingress is not served",
        fix=f"add the IngressClass to the input (it is cluster-wide), or give --class {name}",
        field="spec.ingressClassName",
    )


def _foreign_annotation(name: str, origin: Origin) -> Problem:
    return Problem(
        "LB2002",
        origin,
        f"class `{name}` is not one of lb's",
        fix=f"to serve it, give --class {name}",
        field=f"metadata.annotations[{CLASS_ANNOTATION}]",
    )
