"""The native file: the model in YAML. `lb render` writes it, `lb run` reads it, people write it by hand.

    apiVersion: lb/v1
    kind: Config
    listeners:
      http: {port: 80, http: {head_timeout: 5s, max_head: 16Ki}}     # serves the host set `default`
    hosts:
      default:                                                       # a host set: hostname -> routes in order
        shop.example.com:
          - {path: {exact: /healthz}, respond: 204}
          - {path: /api, methods: [GET, POST], forward: {api: 9, api-next: 1}, response_timeout: 5s}
          - {path: /, headers: {X-Debug: {present: true}}, forward: web}
        "*.example.com":
          one_label: false
          routes: [{forward: web}]
    upstreams:
      web: [10.0.0.1:8080, "[fd00::1]:8080"]
      api:
        balance: least-connections
        connect_timeout: 500ms
        endpoints: [{address: 10.0.0.2:8080, weight: 2}]

Reading what was written gives an equal Config. The keys are in form.py, writing in writer.py, reading in reader.py.
"""

from __future__ import annotations

from lb.model.parts import Before, Reading
from lb.model.reader import from_content, names_of_upstreams, places_of, read_content
from lb.model.writer import to_content, to_text

__all__ = [
    "Before",
    "Reading",
    "from_content",
    "names_of_upstreams",
    "places_of",
    "read_content",
    "to_content",
    "to_text",
]
