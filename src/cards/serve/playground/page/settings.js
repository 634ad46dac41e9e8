// The controls on the left: model, method, its settings, and the method to compare with.

import { h } from "./dom.js";

/** Return the JSON value of a setting that is given as text. The server checks it. */
export function parse(setting, text) {
  const given = text.trim(), { kinds, words } = setting, real = given !== "" && Number.isFinite(Number(given));
  if (words.includes(given)) return given;
  if (kinds.includes("none") && (given === "" || given === "none")) return null;
  if (kinds.includes("bool")) return given === "yes";
  if (kinds.includes("numbers")) return given.split(",").map(Number);
  return real && (kinds.includes("integer") || kinds.includes("number")) ? Number(given) : given;
}

/** The choice of a method and its settings. `values` has the texts of those that differ from the defaults. */
export class MethodChoice {
  constructor(id, label, changed) {
    this.id = id;
    this.changed = changed;
    this.values = {};
    this.select = h("select", { id, onchange: () => this.choose(this.select.value) });
    this.summary = h("p", { class: "soft" });
    this.fields = h("div", { class: "fields" });
    this.element = h("div", { class: "choice" }, h("label", { for: id }, label), this.select, this.summary, this.fields);
  }

  offer(model, families) {
    this.methods = new Map(model.methods.map((method) => [method.name, method]));
    const groups = Object.entries(Object.groupBy(model.methods, ({ family }) => family));
    this.select.replaceChildren(...groups.map(([family, members]) =>
      h("optgroup", { label: families[family] ?? family }, members.map(({ name }) => h("option", {}, name)))));
  }

  get method() {
    return this.methods.get(this.select.value);
  }

  /** Return the settings that differ from the defaults, in JSON types. */
  get settings() {
    const known = new Map(this.method.settings.map((setting) => [setting.name, setting]));
    return Object.fromEntries(Object.entries(this.values).map(([name, text]) => [name, parse(known.get(name), text)]));
  }

  /** Return the text of a setting. */
  text(name) {
    return this.values[name] ?? this.method.settings.find((setting) => setting.name === name)?.default;
  }

  choose(name, values = {}) {
    this.select.value = this.methods.has(name) ? name : this.methods.keys().next().value;
    const { summary, settings } = this.method, names = settings.map((setting) => setting.name);
    this.values = Object.fromEntries(Object.entries(values).filter(([key]) => names.includes(key)));
    this.summary.textContent = summary;
    const [common, advanced] = [false, true].map((kind) => settings.filter((one) => one.advanced === kind).map((one) => this.field(one)));
    this.fields.replaceChildren(...common, advanced.length ? h("details", {}, h("summary", {}, "Advanced"), advanced) : "");
    this.changed();
  }

  set(setting, text) {
    const unset = text.trim() === "" && !setting.kinds.includes("none");
    const shown = text.trim() === "" ? "none" : text.trim();
    if (unset || shown === setting.default) delete this.values[setting.name];
    else this.values[setting.name] = shown;
    this.changed();
  }

  field(setting) {
    const id = `${this.id}-${setting.name}`, value = this.text(setting.name), help = h("span", { class: "soft", id: `${id}-help` }, setting.help);
    const label = h("label", { for: id }, setting.name.replaceAll("_", " "));
    const common = { id, "aria-describedby": help.id };
    if (setting.kinds.includes("bool")) {
      const box = h("input", { ...common, type: "checkbox", checked: value === "yes", onchange: () => this.set(setting, box.checked ? "yes" : "no") });
      return h("div", { class: "field check" }, box, label, help);
    }
    if (setting.words.length && !setting.kinds.length) {
      const select = h("select", { ...common, onchange: () => this.set(setting, select.value) }, setting.words.map((word) => h("option", {}, word)));
      select.value = value;
      return h("div", { class: "field" }, label, select, help);
    }
    const list = setting.choices.length ? h("datalist", { id: `${id}-list` }, setting.choices.map((choice) => h("option", { value: choice }))) : null;
    const input = h("input", { ...common, placeholder: setting.kinds.includes("none") ? "none" : setting.default, list: list?.id, oninput: () => {
      if (slider) slider.value = input.value;
      this.set(setting, input.value);
    } });
    input.value = value === "none" ? "" : value;
    let slider = null;
    if (setting.range) {
      const [low, high, step] = setting.range;
      slider = h("input", { type: "range", min: Math.min(low, value), max: Math.max(high, value), step: step === 1 ? 1 : "any", "aria-label": `${label.textContent} slider`, oninput: () => {
        input.value = step === 1 ? slider.value : Number((Math.round(slider.value / step) * step).toFixed(4));
        this.set(setting, input.value);
      } });
      slider.value = value;
    }
    return h("div", { class: "field" }, label, h("div", { class: "pair" }, input, slider), list, help);
  }
}
