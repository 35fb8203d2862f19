// What the scrapes of the last minutes say: rates, quantiles and shares over a sliding window.
import { buckets, parse, quantile, risen, samples, total } from "./prometheus.js";

export const EVERY_SECONDS = 2;
const WINDOW_SECONDS = 20;
const KEPT = 450; // a quarter of an hour
const isOurs = (name) => name.startsWith("seta_");

export class History {
  constructor() {
    this.scrapes = []; // {at, values}
    this.points = [];
    this.marks = []; // {at, generation}: when another generation began to serve
  }

  // `at`: seconds since 1970.
  add(text, at) {
    const values = parse(text, isOurs);
    const last = this.scrapes.at(-1);
    const generation = total(values, "seta_generation");
    if (last && total(last.values, "seta_generation") !== generation) this.marks.push({ at, generation });
    this.scrapes.push({ at, values });
    this.points.push(pointOf(this.before(at), { at, values }));
    this.scrapes.splice(0, this.scrapes.length - Math.ceil(WINDOW_SECONDS / EVERY_SECONDS) - 2);
    this.points.splice(0, this.points.length - KEPT);
  }

  get latest() {
    return this.scrapes.at(-1)?.values;
  }

  before(at) {
    return this.scrapes.find((one) => at - one.at <= WINDOW_SECONDS);
  }

  // Columns as a chart wants them: time first, then one column for each name.
  columns(names) {
    return [this.points.map((point) => point.at), ...names.map((name) => this.points.map((point) => point[name] ?? null))];
  }

  // Experts with tokens in the shown time, the busiest first.
  busiest(most) {
    const sums = new Map();
    for (const point of this.points) {
      for (const [name, value] of Object.entries(point)) {
        if (name.startsWith("expert ")) sums.set(name, (sums.get(name) ?? 0) + (value ?? 0));
      }
    }
    return [...sums].filter(([, sum]) => sum > 0).sort((a, b) => b[1] - a[1]).slice(0, most).map(([name]) => name.slice(7));
  }
}

function pointOf(before, now) {
  const point = { at: now.at, inFlight: total(now.values, "seta_requests_in_flight"), queued: total(now.values, "seta_requests_queued") };
  if (!before || before.at === now.at) return point;
  const seconds = now.at - before.at;
  const rise = (name, wanted) => risen(now.values, before.values, name, wanted).reduce((sum, { value }) => sum + value, 0);
  const between = (name) => buckets(risen(now.values, before.values, `${name}_bucket`));
  const firstToken = between("seta_time_to_first_token_seconds");
  const gaps = between("seta_inter_token_latency_seconds");
  const [base, routed] = [rise("seta_base_tokens_total"), rise("seta_routed_tokens_total")];
  const decided = rise("seta_gate_entropy_nats_count");
  Object.assign(point, {
    firstToken50: quantile(firstToken, 0.5), firstToken95: quantile(firstToken, 0.95),
    gap50: quantile(gaps, 0.5), gap95: quantile(gaps, 0.95),
    requests: rise("seta_requests_total") / seconds,
    failures: rise("seta_requests_total", { outcome: "error" }) / seconds,
    baseShare: base + routed > 0 ? (100 * base) / (base + routed) : null,
    entropy: decided > 0 ? rise("seta_gate_entropy_nats_sum") / decided : null,
  });
  for (const { labels } of samples(now.values, "seta_tokens_total")) {
    point[`expert ${labels.expert}`] = rise("seta_tokens_total", { expert: labels.expert }) / seconds;
  }
  return point;
}

// Since each generation came into memory: did the new one make anything worse?
export function byGeneration(values) {
  const numbers = samples(values, "seta_requests_in_flight").map(({ labels }) => labels.generation);
  return numbers.map((generation) => {
    const wanted = { generation };
    const [base, routed] = [total(values, "seta_base_tokens_total", wanted), total(values, "seta_routed_tokens_total", wanted) ?? 0];
    const firstToken = buckets(samples(values, "seta_time_to_first_token_seconds_bucket", wanted));
    const gaps = buckets(samples(values, "seta_inter_token_latency_seconds_bucket", wanted));
    const decided = total(values, "seta_gate_entropy_nats_count", wanted);
    const mean = (name) => (decided ? total(values, `${name}_sum`, wanted) / total(values, `${name}_count`, wanted) : null);
    return {
      generation,
      answered: total(values, "seta_requests_total", { generation, outcome: "ok" }) ?? 0,
      failed: total(values, "seta_requests_total", { generation, outcome: "error" }) ?? 0,
      inFlight: total(values, "seta_requests_in_flight", wanted) ?? 0,
      firstToken50: quantile(firstToken, 0.5), firstToken95: quantile(firstToken, 0.95),
      gap50: quantile(gaps, 0.5), gap95: quantile(gaps, 0.95),
      baseShare: base !== null && base + routed > 0 ? base / (base + routed) : null,
      entropy: mean("seta_gate_entropy_nats"),
      probability: total(values, "seta_gate_probability_count", wanted) ? mean("seta_gate_probability") : null,
    };
  });
}
