// Colours of experts: one hue each, the same everywhere on the page; the base model has none.
import { getJson } from "./api.js";

// Neighbours far apart, also for most who see colours differently; later ones by the golden angle.
const HUES = [255, 55, 155, 350, 105, 300, 200, 20];
const order = new Map();
let kinds = new Map();

export const BASE = "base model";

export function hueOf(id) {
  if (!order.has(id)) order.set(id, order.size);
  const place = order.get(id);
  return place < HUES.length ? HUES[place] : (HUES[0] + place * 137.508) % 360;
}

export const paint = (id, weight = 1) => (id === BASE ? {} : { "--hue": hueOf(id), "--weight": weight.toFixed(3) });

// Experts keep the bank's order, so a colour is the same before and after a question.
export async function learnColours(path = "v1/bank") {
  const { serving } = await getJson(path);
  serving.experts.forEach((expert) => hueOf(expert.id));
  kinds = new Map(serving.experts.map((expert) => [expert.id, expert.kind]));
  return serving;
}

// The expert that leads at a token: the heaviest; among equals one of a single task, which tells most.
export function leading(token) {
  if (token.base_weight === null) return { id: null, weight: 0 };
  const rank = (expert) => expert.weight + (kinds.get(expert.id) === "shared" ? 0 : 1e-9);
  const first = [...token.experts].sort((a, b) => rank(b) - rank(a))[0];
  if (!first || first.weight < token.base_weight) return { id: BASE, weight: token.base_weight };
  return first;
}
