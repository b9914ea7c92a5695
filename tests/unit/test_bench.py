"""The benchmark's arithmetic, parsers, report and targets: all that needs no lab."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import chart, clock, core, loads, plan, report, targets
from bench.stats import Cell, Key, Sample, less, middle, paired, summarise

UNITS = {"tcp-bulk": ("Gbit/s", "us/MB"), "latency-spaced": ("us", "us/request")}


def key(cure: str, load: str = "tcp-bulk", cause: str = "snat") -> Key:
    return Key(cause, load, cure)


def cells_of(**values: list[float | None]) -> list[Cell]:
    """Cells of TCP bulk under snat; keywords are cures with _ for -."""
    return cells_at("snat", "tcp-bulk", **values)


def cells_at(cause: str, load: str, **values: list[float | None]) -> list[Cell]:
    named = {name.replace("_", "-"): series for name, series in values.items()}
    count = len(next(iter(named.values())))
    rounds = [
        {Key(cause, load, cure): Sample(series[n], cpu_us=1.0) for cure, series in named.items()}
        for n in range(count)
    ]
    order = [Key(cause, load, cure) for cure in named]
    return summarise(rounds, loads.UNITS, order)


def by_key(cells: list[Cell]) -> dict[Key, Cell]:
    return {cell.key: cell for cell in cells}


def results_of(cells: list[Cell]) -> report.Results:
    return report.Results(host="h", kernel="k", cells=cells)


class TestStats:
    def test_ratios_are_paired_by_round_and_not_of_medians(self) -> None:
        # Medians are 20 and 20; in each round the cure was twice or half as fast.
        cells = by_key(cells_of(ethtool_off=[10.0, 20.0, 40.0], csumfix_nat=[20.0, 40.0, 20.0]))
        ours = cells[key("csumfix-nat")]
        assert ours.ratios == [2.0, 2.0, 0.5]
        assert ours.ratio_to_ethtool_off == 2.0
        assert (ours.ratio_min, ours.ratio_max) == (0.5, 2.0)
        assert (ours.median, ours.min, ours.max, ours.rounds) == (20.0, 20.0, 40.0, 3)

    def test_a_round_without_arrival_has_no_ratio(self) -> None:
        cells = by_key(cells_of(ethtool_off=[10.0, None, 10.0], csumfix_nat=[20.0, 20.0, 20.0]))
        assert cells[key("csumfix-nat")].ratios == [2.0, None, 2.0]

    def test_traffic_that_never_arrives_is_no_cure_and_no_number(self) -> None:
        cell = by_key(cells_of(ethtool_off=[1.0, 1.0], scapy=[None, None]))[key("scapy")]
        assert not cell.cures
        assert cell.median is None
        assert cell.ratio_to_ethtool_off is None

    def test_a_cell_given_up_after_the_first_round_counts_one_round(self) -> None:
        rounds = [{key("scapy"): Sample(None)}, {key("none"): Sample(1.0)}]
        cells = by_key(summarise(rounds, UNITS, [key("scapy"), key("none")]))
        assert cells[key("scapy")].rounds == 1
        assert cells[key("none")].values == [None, 1.0]

    def test_one_failure_in_three_rounds_is_an_accident(self) -> None:
        assert by_key(cells_of(scapy=[1.0, None, 1.0]))[key("scapy")].cures
        assert not by_key(cells_of(scapy=[1.0, None]))[key("scapy")].cures

    def test_without_baseline_there_is_no_ratio(self) -> None:
        assert by_key(cells_of(scapy=[1.0]))[key("scapy")].ratio_to_ethtool_off is None

    def test_unmeasured_cells_are_left_out(self) -> None:
        rounds = [{key("none"): Sample(1.0)}]
        assert len(summarise(rounds, UNITS, [key("none"), key("scapy")])) == 1

    def test_series(self) -> None:
        assert paired([1.0, None, 3.0, 4.0], [2.0, 1.0, None, 0.0]) == [0.5, None, None, None]
        assert less([3.0, None], [1.0, 1.0]) == [2.0, None]
        assert middle([None, 3.0, 1.0]) == 2.0
        assert middle([None]) is None


class TestLoads:
    def test_udp_rate_loss_and_cpu(self) -> None:
        sent, got = loads.Count(100, 200, 0, 0), loads.Count(80, 150, 0, 0)
        sample = loads.judge_udp(sent, got, drops=50, seconds=0.5, busy=2.0)
        assert sample.value == pytest.approx(0.16)
        assert sample.loss == pytest.approx(0.25)
        assert sample.cpu_us == pytest.approx(12_500)

    def test_udp_that_the_receiver_drops_is_no_cure(self) -> None:
        sent, got = loads.Count(10_000, 10_000, 0, 0), loads.Count(5, 5, 0, 0)
        assert not loads.judge_udp(sent, got, drops=9_000, seconds=1, busy=1).cures

    def test_udp_lost_before_a_slow_cure_is_still_a_cure(self) -> None:
        sent, got = loads.Count(10_000, 10_000, 0, 0), loads.Count(50, 50, 0, 0)
        assert loads.judge_udp(sent, got, drops=0, seconds=1, busy=1).cures

    def test_udp_of_which_nothing_arrives_is_no_cure(self) -> None:
        sent, got = loads.Count(100, 100, 0, 0), loads.Count(0, 0, 100, 0)
        assert not loads.judge_udp(sent, got, drops=0, seconds=1, busy=1).cures

    def test_iperf_leaves_out_the_warm_up(self) -> None:
        def interval(start: float, size: int) -> dict[str, object]:
            return {"sum": {"start": start, "seconds": 0.25, "bytes": size}}

        document = {"intervals": [interval(0, 1), interval(0.25, 10**9), interval(0.5, 10**9)]}
        assert loads.parse_iperf(document, 0.25) == pytest.approx(32)
        assert loads.parse_iperf({"error": "x"}, 0.25) is None

    def test_sockperf(self) -> None:
        text = (
            "sockperf: [Valid Duration] RunTime=0.550 sec; SentMessages=1100; "
            "ReceivedMessages=1100\n"
            "sockperf: ---> percentile 99.990 = 2064.161\n"
            "sockperf: ---> percentile 99.900 =  717.108\n"
            "sockperf: ---> percentile 99.000 =   90.701\n"
            "sockperf: ---> percentile 50.000 =   48.181\n"
        )
        sample = loads.parse_sockperf(text, busy=0.2)
        assert (sample.value, sample.p99, sample.p999) == (48.181, 90.701, 717.108)
        assert sample.cpu_us == pytest.approx(100)
        assert not loads.parse_sockperf("sockperf: No messages were received", 0.2).cures

    def test_proc_stat(self) -> None:
        text = "cpu  100 10 200 9999 50 5 15 77 0 0\ncpu0 1 2 3\n"
        assert clock.parse_stat(text) == pytest.approx((9999 + 50 + 77) / 100)


class TestPlan:
    def test_every_target_can_be_evaluated_from_a_full_run(self) -> None:
        order = plan.FULL.cells()
        rounds = [dict.fromkeys(order, Sample(2.0, 1.0, p99=1.0))]
        cells = by_key(summarise(rounds, loads.UNITS, order))
        # What csumfix adds to a round trip is a difference, here 0; the core is another program.
        missing = [o.what for o in targets.evaluate(cells, {"repair_right_1478_to_dpdk": 2.5})
                   if o.measured is None and "latency" not in o.what]  # fmt: skip
        assert missing == []

    @pytest.mark.parametrize("mode", [plan.FULL, plan.QUICK])
    def test_ratios_to_the_baseline_exist_everywhere(self, mode: plan.Plan) -> None:
        cells = set(mode.cells())
        for one in cells:
            assert Key(one.cause, one.load, "ethtool-off") in cells
            assert Key(one.cause, one.load, "none") in cells

    def test_filters(self) -> None:
        cells = plan.FULL.cells(["snat"], ["tcp-bulk"], ["scapy", "none"])
        assert cells == [key("none"), key("scapy")]

    def test_the_ceiling_is_the_same_lab_under_every_cause(self) -> None:
        places = {plan.station(key("none", cause=cause)) for cause in plan.CAUSES}
        assert places == {("none", "none", 1500)}
        assert plan.station(key("scapy", "tcp-bulk-9000")) == ("snat", "scapy", 9000)


class TestReport:
    CELLS = staticmethod(
        lambda: cells_of(ethtool_off=[2.0, 4.0], csumfix_nat=[3.0, 6.0], scapy=[None, None])
    )

    def test_json_has_what_was_promised_and_can_be_read_back(self, tmp_path: Path) -> None:
        path = tmp_path / "new" / "out.json"
        report.save(results_of(self.CELLS()), path)
        raw = json.loads(path.read_text())
        assert {"host", "kernel", "cells"} <= raw.keys()
        assert {
            "cause", "load", "cure", "unit", "median", "min", "max", "rounds",
            "ratio_to_ethtool_off", "cpu_us_per_packet",
        } <= raw["cells"][0].keys()  # fmt: skip
        assert report.load(path).cells == self.CELLS()

    def test_markdown_says_in_words_what_does_not_cure(self) -> None:
        text = report.markdown(results_of(self.CELLS()))
        assert "| scapy | does not cure | - | - | - | - | - |" in text
        assert "| csumfix-nat | 4.50 (3.00-6.00) | 1.50 | 1.50-1.50 | - | 1.00 | - |" in text

    def test_markdown_tables_are_rectangular(self) -> None:
        for text in (
            report.markdown(results_of(self.CELLS())),
            report.summary(results_of(self.CELLS())),
            targets.markdown(targets.evaluate({}, None)),
        ):
            for table in text.split("\n\n"):
                rows = [line for line in table.splitlines() if line.startswith("|")]
                assert len({row.count("|") for row in rows}) <= 1, table

    def test_summary(self) -> None:
        text = report.summary(results_of(self.CELLS()))
        assert "| scapy | does not cure |" in text
        assert "| csumfix-nat | 4.50 (x 1.50) |" in text

    @pytest.mark.parametrize(
        ("value", "text"),
        [(None, "-"), (1234.5, "1,234"), (12.34, "12.3"), (1.234, "1.23"), (0.0, "0.00")],
    )
    def test_numbers(self, value: float | None, text: str) -> None:
        assert report.number(value) == text

    def test_small_ratios_keep_their_digits(self) -> None:
        assert report.ratio(0.00345) == "0.0034"
        assert report.ratio(1.666) == "1.67"


class TestChart:
    def test_bars_keep_the_order_of_cures_and_say_what_does_not_cure(self) -> None:
        panel = chart.Panel("snat", "tcp-bulk", "TCP")
        cells = cells_of(scapy=[None], csumfix_all=[1.0], ethtool_off=[2.0])
        found = chart.bars(panel, cells)
        assert [bar.cure for bar in found] == ["ethtool-off", "scapy", "csumfix-all"]
        assert [bar.ratio for bar in found] == [1.0, None, 0.5]

    def test_a_panel_without_its_base_is_empty(self) -> None:
        panel = chart.Panel("snat", "tcp-bulk", "TCP")
        assert chart.bars(panel, cells_of(scapy=[1.0])) == []


class TestTargets:
    @staticmethod
    def find(outcomes: list[targets.Outcome], what: str, against: str) -> targets.Outcome:
        found = [one for one in outcomes if what in one.what and against in one.against]
        assert len(found) == 1, found
        return found[0]

    def test_met_and_missed(self) -> None:
        cells = by_key(
            cells_of(ethtool_off=[2.0], csumfix_nat=[3.0], csumfix_packets=[2.8],
                     csumfix_all=[1.7], checksum_target=[3.0])
        )  # fmt: skip
        outcomes = targets.evaluate(cells, None)
        assert self.find(outcomes, "csumfix-nat", "ethtool-off").met is True
        assert self.find(outcomes, "tcp-bulk: csumfix-packets", "ethtool-off").met is False
        assert self.find(outcomes, "csumfix-nat", "checksum-target").met is True
        assert self.find(outcomes, "csumfix-all", "ethtool-off").met is True

    def test_nothing_measured_is_neither(self) -> None:
        assert {one.met for one in targets.evaluate({}, None)} == {None}

    def test_the_floor_under_dnat_is_that_of_snat(self) -> None:
        load = "udp-saturating-512-1"
        cells = by_key(
            cells_at("dnat", load, csumfix_packets=[95.0])
            + cells_at("snat", load, accept_only=[100.0])
        )
        floor = self.find(targets.evaluate(cells, None), f"dnat: {load}", "accept-only under snat")
        assert floor.measured == pytest.approx(0.95)
        assert floor.met

    def test_added_latency_is_what_comes_on_top_of_no_cure(self) -> None:
        cells = by_key(
            cells_at("snat", "latency-spaced", none=[50.0, 60.0], netfilterqueue=[90.0, 100.0],
                     csumfix_packets=[70.0, 90.0])
        )  # fmt: skip
        outcome = self.find(targets.evaluate(cells, None), "latency p50", "netfilterqueue")
        assert outcome.measured == pytest.approx(0.625)
        assert outcome.met is False

    def test_the_core(self) -> None:
        outcome = targets.evaluate({}, {"repair_right_1478_to_dpdk": 2.5})[-1]
        assert (outcome.measured, outcome.verdict) == (2.5, "met")

    def test_read_and_exit_code(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = tmp_path / "out.json"
        report.save(results_of(cells_of(ethtool_off=[2.0], csumfix_all=[1.0])), path)
        assert targets.main([str(path)]) == 1
        assert "missed" in capsys.readouterr().out
        assert targets.main([str(tmp_path / "none.json")]) == 2


class TestCore:
    def test_each_build_of_dpdk_is_compared_round_by_round(self) -> None:
        times = {
            ("repair-right", 1478): [50.0, 100.0],
            ("rte_raw_cksum", 1478): [100.0, 300.0],
            ("rte_raw_cksum-native", 1478): [120.0, 150.0],
        }
        assert core.to_dpdk(times, 1478) == pytest.approx(2.5)
        assert core.to_dpdk(times, 1478, "rte_raw_cksum-native") == pytest.approx(1.95)

    def test_without_dpdk_there_is_no_ratio(self) -> None:
        assert core.to_dpdk({("repair-right", 1478): [50.0]}, 1478) is None

    def test_lines_of_the_program(self) -> None:
        assert list(core.parse_times("scalar 64 12.500\n")) == [("scalar", 64, 12.5)]
