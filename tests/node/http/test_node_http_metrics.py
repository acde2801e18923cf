"""Metrics: Prometheus' own parser reads them, they say what the view says, and strangers cannot make more of them."""

from prometheus_client.parser import text_string_to_metric_families

from nmoe.node.http.metrics import MAX_PEERS, MAX_WORDS
from nmoe.node.view import RefusedView


def samples(answer) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = text_string_to_metric_families(answer.body.decode())
    return {(one.name, tuple(sorted(one.labels.items()))): one.value for family in families for one in family.samples}


def test_the_view_as_metrics(ask, infer_request):
    assert ask("POST", "/v2/models/nmoe/infer", infer_request([0] * 16)).status == 200
    assert ask("POST", "/v2/models/nmoe/infer", {}).status == 400
    assert ask("GET", "/what/ever").status == 404
    answer = ask("GET", "/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = samples(answer)
    assert found["nmoe_requests_total", (("outcome", "answered"),)] == 5196
    assert found["nmoe_requests_total", (("outcome", "degraded"),)] == 14
    assert found["nmoe_requests_total", (("outcome", "refused: busy"),)] == 21
    assert found["nmoe_latency_seconds", (("quantile", "0.99"),)] == 0.0123
    peer = ("peer", "node-1")
    assert found["nmoe_link_asked_total", (peer,)] == 4000
    assert found["nmoe_link_answered_total", (peer,)] == 3980
    assert found["nmoe_link_failed_total", (peer, ("reason", "late"))] == 3
    assert found["nmoe_link_hedged_total", (peer,)] == 12
    assert found["nmoe_link_sent_bytes_total", (peer,)] == 4_200_000
    assert found["nmoe_link_rtt_seconds", (peer,)] == 0.0004
    assert found["nmoe_link_loss_ratio", (peer,)] == 0.002
    assert found["nmoe_link_queue_rows", (peer,)] == 3
    assert found["nmoe_link_state", (peer, ("state", "up"))] == 1
    assert found["nmoe_link_state", (peer, ("state", "down"))] == 0
    assert found["nmoe_expert_rows_chosen_total", (("expert", "node-0"),)] == 4000
    assert found["nmoe_malformed_messages_total", (("fault", "version"),)] == 2
    assert found["nmoe_not_admitted_total", (("reason", "another extractor"),)] == 7
    assert found["nmoe_feature_bytes_out_total", (("format", "int8"),)] == 1_300_000
    assert found["nmoe_log_errors_total", ()] == 0
    assert found["nmoe_http_infer_seconds_count", ()] == 1
    route = ("route", "/v2/models/nmoe/infer")
    assert found["nmoe_http_requests_total", (route, ("status", "200"))] == 1
    assert found["nmoe_http_requests_total", (route, ("status", "400"))] == 1
    assert found["nmoe_http_requests_total", (("route", "other"), ("status", "404"))] == 1


def test_strangers_cannot_make_ever_more_series(ask, service, fakes):
    links = tuple(fakes.link(f"node-{index}", failed={f'why "{number}"\n': number for number in range(100)}) for index in range(1000))
    refusals = tuple(RefusedView(who=f"node-{index}", reason=f"reason {index}", count=1, last_s=1.0) for index in range(1000))
    service.views = (fakes.view(links=links, refusals=refusals, malformed={f"kind {index}": 1 for index in range(1000)}),)
    for index in range(50):
        ask("GET", f"/stranger/{index}")
    found = samples(ask("GET", "/metrics"))
    names = [name for name, _ in found]
    assert names.count("nmoe_not_admitted_total") == names.count("nmoe_malformed_messages_total") == MAX_WORDS + 1
    assert found["nmoe_not_admitted_total", (("reason", "other"),)] == 1000 - MAX_WORDS
    assert names.count("nmoe_link_asked_total") == MAX_PEERS
    assert names.count("nmoe_link_failed_total") == MAX_PEERS * (MAX_WORDS + 1)
    assert found["nmoe_neighbours", ()] == 1000
    assert names.count("nmoe_http_requests_total") == 1
