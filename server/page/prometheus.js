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

// Cumulative counts of a histogram by upper bound, over all series that match.
export function buckets(scrape, name, wanted = {}) {
  const counts = new Map();
  for (const { labels, value } of samples(scrape, `${name}_bucket`, wanted)) {
    const bound = labels.le === "+Inf" ? Infinity : Number(labels.le);
    counts.set(bound, (counts.get(bound) ?? 0) + value);
  }
  return counts;
}

// What came between two scrapes. A series that began again, or left with its generation, counts from zero.
export function since(now, before) {
  const isReset = [...now].some(([bound, count]) => count < (before.get(bound) ?? 0));
  return isReset ? now : new Map([...now].map(([bound, count]) => [bound, count - (before.get(bound) ?? 0)]));
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
