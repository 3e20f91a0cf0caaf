// A form from a JSON Schema: the options of a method, and the sampling controls beside them.
import { make } from "./elements.js";

/** Controls beside a method's options. `varied`: another text every time, if the method draws. */
function sampling(method, varied) {
  const temperature = varied ? Math.min(0.7, method.default_temperature) : 0;
  return {
    max_tokens: { type: "integer", minimum: 1, default: 128, description: "most new tokens" },
    temperature: { type: "number", minimum: 0, maximum: 2, default: temperature, description: "0: the likeliest token" },
    top_p: { type: "number", minimum: 0, maximum: 1, default: 1, description: "share of probability kept" },
    seed: { type: "integer", minimum: 0, default: varied ? null : 0, description: `same seed, same text${varied ? "; empty: any" : ""}` },
  };
}

const kindOf = (schema) => [schema.type].flat().filter((type) => type && type !== "null")[0];
const shown = (value) => (value === null || value === undefined ? "" : String(value));

/** One field: its element, and value() that is undefined where the default stands. */
function field(name, schema) {
  const title = schema.description ?? "";
  const parts = schema.anyOf?.filter((one) => one.type === "object");
  if (parts?.length) return part(name, schema, parts, title);
  const kind = kindOf(schema);
  const initial = shown(schema.default);
  let input;
  const choices = schema.enum ?? (kind === "boolean" ? [true, false] : null);
  if (choices) {
    input = make("select", { name });
    if (!choices.some((choice) => shown(choice) === initial)) input.append(make("option", { value: "" }, "(default)"));
    for (const choice of choices) input.append(make("option", { value: shown(choice) }, shown(choice)));
    input.value = initial;
  } else {
    const numeric = kind === "integer" || kind === "number";
    input = make("input", { name, type: numeric ? "number" : "text", value: initial });
    if (numeric) input.step = kind === "integer" ? 1 : "any";
    if (schema.minimum !== undefined) input.min = schema.minimum;
    if (schema.maximum !== undefined) input.max = schema.maximum;
  }
  const element = make("label", { title }, make("span", {}, name), input, make("span", { className: "quiet" }, title));
  const value = () => {
    if (input.value === initial || input.value === "") return undefined;
    if (kind === "integer" || kind === "number") return Number(input.value);
    if (kind === "boolean") return input.value === "true";
    return input.value;
  };
  const put = (given) => { input.value = shown(given); };
  return { element, value, put };
}

/** An option that is one of several objects with options of their own (a drafter, a policy). */
function part(name, schema, parts, title) {
  const initial = shown(schema.default?.name ?? schema.default);
  const select = make("select", { name });
  if (!initial) select.append(make("option", { value: "" }, "(none)"));
  for (const one of parts) select.append(make("option", {}, one.properties.name.const));
  select.value = initial;
  const inner = make("div", { className: "fields" });
  let fields = {};
  const fill = () => {
    const chosen = parts.find((one) => one.properties.name.const === select.value);
    const { name: _, ...properties } = chosen?.properties ?? {};
    fields = draw(inner, properties);
  };
  select.addEventListener("change", fill);
  fill();
  const element = make("fieldset", {}, make("legend", {}, name),
    make("label", { title }, make("span", {}, title), select), inner);
  const value = () => {
    const own = collect(fields);
    if (select.value === initial && !Object.keys(own).length) return undefined;
    return { name: select.value, ...own };
  };
  return { element, value };
}

function draw(parent, properties) {
  const fields = {};
  parent.replaceChildren();
  for (const [name, schema] of Object.entries(properties)) {
    fields[name] = field(name, schema);
    parent.append(fields[name].element);
  }
  return fields;
}

function collect(fields) {
  const values = Object.entries(fields).map(([name, one]) => [name, one.value()]);
  return Object.fromEntries(values.filter(([, value]) => value !== undefined));
}

/** Choice of a method with its options and sampling: { element, request() }. */
export function settings(methods, preferred, { varied = false } = {}) {
  const select = make("select", { name: "method" });
  for (const method of methods) select.append(make("option", {}, method.name));
  const names = methods.map((method) => method.name);
  select.value = names.includes(preferred) ? preferred : names[0];
  const about = make("p", { className: "quiet" });
  const options = make("div", { className: "fields" });
  const shared = make("div", { className: "fields" });
  let controls = {}, defaults = {}, fields = {};
  const fill = () => {
    const method = methods.find((one) => one.name === select.value);
    const kept = collect(controls), drawn = sampling(method, varied);
    controls = draw(shared, drawn);
    for (const [name, value] of Object.entries(kept)) controls[name].put(value);
    const stated = Object.entries(drawn).filter(([, schema]) => schema.default !== null);
    defaults = Object.fromEntries(stated.map(([name, schema]) => [name, schema.default]));
    about.textContent = [method.summary, method.needs && `Needs ${method.needs}.`, method.exact === false && "Approximate."]
      .filter(Boolean).join(" ");
    fields = draw(options, method.options.properties ?? {});
  };
  select.addEventListener("change", fill);
  fill();
  const element = make("div", {},
    make("label", {}, "Method ", select), about, shared,
    make("details", {}, make("summary", {}, "Options of the method"), options));
  const request = () => {
    const body = { method: select.value, ...defaults, ...collect(controls) };
    const own = collect(fields);
    if (Object.keys(own).length) body.method_options = own;
    return body;
  };
  return { element, request, name: () => select.value };
}
