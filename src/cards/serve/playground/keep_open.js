// Updates replace the HTML of a run, so reopen the segment that the reader has opened.
let open;
element.addEventListener("click", ({ target }) => {
  const segment = target.closest("summary")?.parentElement;
  if (segment) open = segment.open ? undefined : segment.id;
});
watch("value", () => open && element.querySelector("#" + open)?.setAttribute("open", ""));
