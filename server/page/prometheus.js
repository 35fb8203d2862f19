// Prometheus' text format, read as far as the charts need it: samples by name, and quantiles of histograms.
const LINE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)/;
const LABEL = /([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"/g;
const ESCAPES = { "\\n": "\n", '\\"': '"', "\\\\": "\\" };

// Map of name to [{labels, value}]; only names that `isWanted`.
export function parse(text, isWanted = () => true) {
  const found = new Map();
  for (const line of text.split("\n")) {
    const match = line.startsWith("#") ? null : LINE.exec(line);
    if (!match || !isWanted(match[1])) continue;
    const labels = {};
    for (const [, name, value] of (match[2] ?? "").matchAll(LABEL)) labels[name] = value.replace(/\\[n"\\]/g, (one) => ESCAPES[one]);
    if (!found.has(match[1])) found.set(match[1], []);
    found.get(match[1]).push({ labels, value: Number(match[3].replace("Inf", "Infinity")) });
  }
  return found;
}

export const samples = (scrape, name, wanted = {}) =>
  (scrape.get(name) ?? []).filter(({ labels }) => Object.entries(wanted).every(([key, value]) => labels[key] === value));

// The sum of a metric's samples; null if it has none.
export function total(scrape, name, wanted = {}) {
  const found = samples(scrape, name, wanted);
  return found.length ? found.reduce((sum, { value }) => sum + value, 0) : null;
}

// By how much each sample of `now` has risen since `before`. One that is new, or began again, rose from zero; one that
// has gone, with the generation it was of, does not count.
export function risen(now, before, name, wanted = {}) {
  const old = new Map(samples(before, name, wanted).map(({ labels, value }) => [JSON.stringify(labels), value]));
  return samples(now, name, wanted).map(({ labels, value }) => {
    const from = old.get(JSON.stringify(labels)) ?? 0;
    return { labels, value: value < from ? value : value - from };
  });
}

// Cumulative counts by upper bound, over all series of a histogram's `_bucket` samples.
export function buckets(found) {
  const counts = new Map();
  for (const { labels, value } of found) {
    const bound = labels.le === "+Inf" ? Infinity : Number(labels.le);
    counts.set(bound, (counts.get(bound) ?? 0) + value);
  }
  return counts;
}

// Linear within a bucket, as Prometheus' histogram_quantile; null if nothing was counted.
export function quantile(counts, share) {
  const bounds = [...counts.keys()].sort((a, b) => a - b);
  const all = counts.get(Infinity) ?? 0;
  if (!all) return null;
  let [lower, below] = [0, 0];
  for (const bound of bounds) {
    const count = counts.get(bound);
    if (count >= share * all) {
      return bound === Infinity ? lower : lower + ((bound - lower) * (share * all - below)) / Math.max(1, count - below);
    }
    [lower, below] = [bound, count];
  }
  return lower;
}
