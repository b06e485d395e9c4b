// A link to what is folded unfolds it.
const unfold = (hash) => {
  const found = document.getElementById(hash.slice(1));
  if (found?.tagName !== "DETAILS") return false;
  found.open = true;
  found.querySelector("summary").focus({preventScroll: true});
  found.scrollIntoView({block: "nearest"});
  return true;
};
document.addEventListener("click", (event) => {
  const link = event.target.closest("a[href^='#']");
  if (link ? unfold(link.hash) : false) event.preventDefault();
});
unfold(location.hash);
